"""What the sa-swin bundles share and MONAI lacks: symmetric pairs, SACA networks, losses, alignment, a cohort."""
