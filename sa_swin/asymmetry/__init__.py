"""Asymmetry maps for a reader, with no network: how unusual each place is, and on which side, against healthy heads."""
