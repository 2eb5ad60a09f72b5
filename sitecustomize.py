"""Read by Python as it starts, where this folder is on PYTHONPATH, before anything asks who the user is."""

import custom  # noqa: F401
from custom.support.startup import start_soon

start_soon()
