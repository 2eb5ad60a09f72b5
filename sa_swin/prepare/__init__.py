"""Align a whole cohort once, and look at it."""
