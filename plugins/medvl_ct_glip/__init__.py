"""Organ pooling, organ-level objectives, report extraction, masks."""
