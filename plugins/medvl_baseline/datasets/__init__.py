"""Generic datasets."""
