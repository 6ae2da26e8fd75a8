"""Keras' files, read as data, and their tensors by this package's names."""
