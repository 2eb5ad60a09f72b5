"""The BIDS App: from a BIDS folder to a derivatives dataset and a page for each scan."""
