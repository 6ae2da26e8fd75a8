"""Reads and writes weights: Keras and timm files, converted files, and checkpoints of runs.

`weights.load(model, path)` fills a model from any of them.
"""

from xception_jax.weights.pretrained import load

__all__ = ["load"]
