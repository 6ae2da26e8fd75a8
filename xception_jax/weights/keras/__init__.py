"""Keras' files: read as data, their tensors by our names."""
