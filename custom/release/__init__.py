"""Bundles as self-contained Model Zoo packages: build, verify, inspect."""
