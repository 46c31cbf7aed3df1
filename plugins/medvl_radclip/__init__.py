"""Slice-pooling adapter, region-modality-condition captions and their datasets."""
