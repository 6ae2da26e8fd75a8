"""Weights in and out: other libraries' tensors by our names, our checkpoints, converted files.

`weights.load(model, path)` fills a model from any of them.
"""

from xception_jax.weights.pretrained import load

__all__ = ["load"]
