"""The process: its devices, its peers, its signals, its compiled programs."""
