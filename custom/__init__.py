"""What the sa-swin bundles share and MONAI lacks: symmetric pairs, SACA networks, losses, alignment, a cohort."""

import os

# MONAI imports MLflow, which reports its use to its makers unless it is told not to. It asks at every event.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
