"""The app of `main.py`, in parts; MONAI Label looks for this folder."""
