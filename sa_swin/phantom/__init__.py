"""A synthetic cohort: brains with lesions, painted."""
