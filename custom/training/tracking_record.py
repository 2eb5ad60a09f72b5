"""Which run in MLflow the results of a folder belong to: kept beside them, for a resume and for the report."""

import json
from pathlib import Path


def record_path(output_dir: str | Path, workflow: str) -> Path:
    """Where it is kept which run in MLflow the results of a folder belong to."""
    return Path(output_dir) / f"mlflow_{workflow}.json"


def add_to_runs(folder: str | Path, path: str | Path) -> None:
    """Add a file, as a report, to the runs in MLflow that the results of a folder belong to, where there are any."""
    for known in sorted(Path(folder).glob(record_path("", "*").name)):
        content = json.loads(known.read_text())
        from mlflow import MlflowClient  # seconds to import, where nothing is tracked

        MlflowClient(content["tracking_uri"]).log_artifact(content["run_id"], str(path))
