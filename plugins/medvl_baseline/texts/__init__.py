"""Texts of studies, and vocabularies made from them."""
