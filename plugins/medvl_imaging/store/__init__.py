"""Tensors kept on disk by content."""
