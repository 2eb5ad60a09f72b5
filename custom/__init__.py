"""What the sa-swin bundles share and MONAI lacks: symmetric pairs, SACA networks, losses, alignment, a cohort."""

import getpass
import os
import tempfile

# MONAI imports MLflow, which reports its use to its makers unless it is told not to. It asks at every event.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

try:
    getpass.getuser()
except (KeyError, OSError):  # a container's user without a name, for which MONAI asks at its import
    os.environ["USER"] = f"user{os.getuid()}"
if os.path.expanduser("~") == "~":  # without a home, libraries would make a folder of this name
    os.environ["HOME"] = tempfile.gettempdir()
