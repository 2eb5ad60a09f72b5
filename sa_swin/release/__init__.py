"""Bundles as packages for the MONAI Model Zoo."""
