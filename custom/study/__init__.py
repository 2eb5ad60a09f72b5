"""Studies: a grid of bundle runs on one cohort, their statistics, and the page of evidence made from them."""
