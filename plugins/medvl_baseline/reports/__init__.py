"""Radiology reports: sections and rules."""
