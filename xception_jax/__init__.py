"""Xception and its relatives in JAX: training, evaluation and checkpoints that nothing disturbs."""

__version__ = "0.1.0"
