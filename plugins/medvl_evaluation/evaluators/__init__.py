"""Evaluators that any paper may use."""
