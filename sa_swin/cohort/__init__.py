"""Cohorts: BIDS folders and tables to datalists, checks of the files, the leakage guard."""
