"""A plan that fits: what a cohort and a device ask of a training's settings."""
