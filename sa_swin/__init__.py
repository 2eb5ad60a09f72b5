"""The tools around the bundles, and the command `sa-swin`. Never shipped in a package."""
