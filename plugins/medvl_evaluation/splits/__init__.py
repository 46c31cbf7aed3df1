"""Splits of studies, and the guard against leaks between them."""
