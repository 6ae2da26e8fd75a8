"""timm's and PyTorch's files: read as data, their tensors by our names."""
