"""Layer over the core: images from files to standardised tensors, kept on disk; simulated radiographs."""
