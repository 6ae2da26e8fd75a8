"""Small helpers that are independent of training."""
