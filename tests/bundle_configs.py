"""The bundles' configurations at a small size, as `python -m monai.bundle run` makes workflows of them."""

from pathlib import Path

import yaml
from monai.bundle import ConfigWorkflow

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("pretrain", "classify", "segment")
WORKFLOWS = {"train": ("train",), "evaluate": ("train", "evaluate"), "inference": ("inference",)}
TINY = {"feature_size": 12, "window_size": 4, "spacing": 6.0, "spatial_size": [32, 64, 64], "num_workers": 0}
ROI = {"pretrain": {"roi_size": [32, 64, 64]}, "classify": {}, "segment": {"roi_size": [32, 64, 64]}}
TRAINING = {"batch_size": 2, "warmup_epochs": 0, "cache_rate": 0.0}


def configs(task, *names):
    return [str(ROOT / "bundles" / f"sa_swin_{task}" / "configs" / f"{name}.yaml") for name in names]


def read(task, name):
    return yaml.safe_load(Path(configs(task, name)[0]).read_text())


def overrides(task, workflow, root, output):
    """Settings of a small run on the CPU."""
    values = {
        **TINY,
        **ROI[task],
        "align": False,
        "dataset_dir": str(root),
        "bundle_root": str(ROOT / "bundles" / f"sa_swin_{task}"),
    }
    values |= {"output_dir": str(output), "ckpt_dir": str(output / "models")}
    if workflow == "inference":
        return values | {"datalist": str(root / "datalists" / f"{task}.json")}
    return values | TRAINING


def made(task, workflow, root, output, **changes):
    """A workflow as `python -m monai.bundle run` makes it."""
    kind = "infer" if workflow == "inference" else "train"
    settings = {**overrides(task, workflow, root, output), "device": "$torch.device('cpu')", **changes}
    return ConfigWorkflow(configs(task, *WORKFLOWS[workflow]), logging_file=False, workflow_type=kind, **settings)
