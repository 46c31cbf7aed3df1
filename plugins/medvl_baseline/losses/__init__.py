"""Generic losses."""
