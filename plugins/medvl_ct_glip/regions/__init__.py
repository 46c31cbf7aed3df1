"""Regions of a scan: volumes, texts, batches, model."""
