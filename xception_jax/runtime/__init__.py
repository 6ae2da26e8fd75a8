"""The process: its devices, other processes, signals and compiled programs."""
