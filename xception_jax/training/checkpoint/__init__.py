"""Writes, verifies and restores checkpoints."""
