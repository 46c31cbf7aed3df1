"""Generic encoders of images and texts."""
