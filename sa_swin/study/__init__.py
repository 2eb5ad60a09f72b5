"""Studies: what symmetry is worth."""
