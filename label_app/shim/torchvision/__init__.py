"""In the place of torchvision, whose wheel does not fit every torch; `make label-setup` copies it where there is none.

MONAI Label imports two functions of it, for pictures of its own that this app never makes.
"""
