"""What a run says, and writes down, of itself."""
