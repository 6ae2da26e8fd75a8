"""What the process is and does: its devices, the others beside it, its signals, its compiled programs."""
