"""The version of the alignment, which a prepared cohort is stamped with."""

ALIGNMENT_VERSION = 1
"""Raised by hand with every change of an aligned volume's numbers; `tests/alignment/test_version.py` holds them."""
