"""Checkpoints: written, verified, restored."""
