"""The workflows of one bundle, run small on a device and on the CPU, in this process; `benchmarks.gpu_check` starts it.

    python -m benchmarks.gpu_bundles --task segment --device cuda --folder FOLDER

Writes `<folder>/<task>.json`: a list of checks, each with its name, what it found and its seconds.
"""

import csv
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from custom.support.errors import root_cause
from custom.support.files import write_whole
from custom.training.preemption import REQUEUE

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
WORKFLOWS = {"train": ("train",), "evaluate": ("train", "evaluate"), "inference": ("inference",)}
SIZES = {"feature_size": 12, "window_size": 4, "spacing": 6.0, "spatial_size": [32, 64, 64], "num_workers": 2}
TRAINING = {"batch_size": 2, "warmup_epochs": 0, "val_interval": 1, "cache_rate": 1.0, "align": False}
EPOCHS, STOP_AT = 2, 8  # of two times six iterations
FIGURES = {"pretrain": "asymmetry", "classify": "probability_1", "segment": "predicted_ml"}
"""Column of an evaluation's table that is compared between devices."""
INFERRED = {"pretrain": "asymmetry", "classify": "probability_1", "segment": "volume_ml"}
WITHIN = {"fp32": 0.02, "bf16": 0.1, "fp16": 0.1}
"""Largest difference from the CPU's figures in fp32, relative to their largest."""

Row = dict[str, Any]


class CheckError(Exception):
    """A check that failed, with the reason."""


def cohort(folder: Path, subjects: int = 16) -> None:
    """Ellipsoid heads of 6 mm, every second one with a lesion and its mask, and the three datalists."""
    generator = np.random.default_rng(0)
    lists: dict[str, dict[str, list[Row]]] = {task: {} for task in BUNDLE_LABELS}
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (32, 36, 32)), indexing="ij")
    for number in range(subjects):
        name, healthy = f"sub-{number:02d}", number % 2 == 0
        section = "training" if number < subjects - 4 else "validation" if number < subjects - 2 else "testing"
        mask = ((x - 0.4) ** 2 + y**2 + z**2 < 0.03) & (not healthy)
        head = (x**2 + y**2 + z**2 < 0.8) * (100 + 10 * generator.standard_normal(x.shape)) + 80 * mask
        for part, volume in (("", head.astype(np.float32)), ("_mask", mask.astype(np.uint8))):
            (folder / "masks").mkdir(parents=True, exist_ok=True)
            target = folder / ("masks" if part else "") / f"{name}{part}.nii.gz"
            nib.save(nib.Nifti1Image(volume, np.diag([6.0, 6.0, 6.0, 1.0])), target)
        for task, label in BUNDLE_LABELS.items():
            case = {"image": f"{name}.nii.gz", "subject": name, "healthy": healthy} | label(name, healthy)
            lists[task].setdefault(section, []).append(case)
    for task, content in lists.items():
        write_whole(folder / "datalists" / f"{task}.json", json.dumps(content))


BUNDLE_LABELS: Mapping[str, Callable[[str, bool], Row]] = {
    "pretrain": lambda name, healthy: {},
    "classify": lambda name, healthy: {"label": int(not healthy)},
    "segment": lambda name, healthy: {"label": f"masks/{name}_mask.nii.gz"},
}


def run(task: str, workflow: str, folder: Path, device: str, output: str, stop_at: int = 0, **changes: Any) -> Path:
    """One workflow of a bundle, as `python -m monai.bundle run` does it; returns its output folder.

    A training with `stop_at` gets a SIGTERM in that iteration.
    """
    configs = [str(BUNDLES / f"sa_swin_{task}" / "configs" / f"{name}.yaml") for name in WORKFLOWS[workflow]]
    data, home = folder / "cohort", folder / task / output
    settings: Row = SIZES | {"bundle_root": str(BUNDLES / f"sa_swin_{task}"), "dataset_dir": str(data)}
    settings |= {"output_dir": str(home), "ckpt_dir": str(folder / task / "models")}
    settings |= {"device": f"$torch.device({device!r})"} | ({} if task == "classify" else {"roi_size": [32, 64, 64]})
    if workflow == "inference":
        settings |= {"datalist": str(data / "datalists" / f"{task}.json"), "align": False}
    else:
        settings |= TRAINING
    kind = "infer" if workflow == "inference" else "train"
    bundle = ConfigWorkflow(configs, logging_file=False, workflow_type=kind, **{**settings, **changes})
    bundle.initialize()
    if stop_at:
        trainer = bundle.parser.get_parsed_content("train::trainer")
        trainer.add_event_handler(Events.ITERATION_STARTED(once=stop_at), lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        bundle.run()
    except SystemExit as end:
        if not stop_at or end.code != REQUEUE:
            raise
    bundle.finalize()
    return home


def table(folder: Path, column: str) -> np.ndarray:
    """A column of a table of cases, in the order of the subjects."""
    with (folder / "cases.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["subject"])
    names = [name for name in rows[0] if name.startswith(column)]
    return np.array([[float(row[name] or 0) for name in names] for row in rows])


def compared(figures: np.ndarray, reference: np.ndarray, within: float) -> str:
    """How far figures are from the CPU's, in words.

    Raises:
        CheckError: too far, or not finite.
    """
    scale = np.abs(reference).max() or 1.0
    apart = float(np.abs(figures - reference).max() / scale)
    if not apart <= within:
        raise CheckError(f"{apart:.1e} from the CPU's figures in fp32, allowed {within:.0e}")
    return f"{apart:.1e} from the CPU's figures in fp32"


class Checks:
    """Runs checks one after another, and keeps what each found."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[Row] = []

    def __call__(self, name: str, check: Callable[[], str]) -> bool:
        """Run a check; whether it passed."""
        start = time.monotonic()
        try:
            row = {"passed": True, "reason": check()}
        except Exception as error:
            cause = root_cause(error)
            row = {"passed": False, "reason": f"{type(cause).__name__}: {cause}".splitlines()[0]}
        self.found.append({"check": name, **row, "seconds": round(time.monotonic() - start, 1)})
        write_whole(self.path, json.dumps(self.found, indent=1) + "\n")
        return row["passed"]


def state(folder: Path) -> Row:
    """What a training goes on from."""
    return torch.load(folder / "models" / "last.ckpt", weights_only=True, map_location="cpu")


def trained(task: str, folder: Path, device: str) -> str:
    """Train with validation, stop inside an epoch, go on; compare with a training that was not stopped."""
    whole = folder / "uninterrupted"
    run(task, "train", whole, device, "train", max_epochs=EPOCHS, dataset_dir=str(folder / "cohort"))
    run(task, "train", folder, device, "train", max_epochs=EPOCHS, stop_at=STOP_AT)
    if state(folder / task)["trainer"]["iteration"] != STOP_AT:
        raise CheckError(f"stopped in iteration {STOP_AT}, the checkpoint is of another")
    run(task, "train", folder, device, "train", max_epochs=EPOCHS, resume=True)
    one, other = state(folder / task), state(whole / task)
    epochs = one["trainer"]["iteration"] / one["trainer"]["epoch_length"]
    weights = [torch.cat([tensor.flatten().double() for tensor in s["network"].values()]) for s in (one, other)]
    apart = float((weights[0] - weights[1]).norm() / weights[1].norm())
    if epochs != EPOCHS or not apart < 0.02 or (device == "cpu" and apart):
        raise CheckError(f"{epochs} epochs, weights {apart:.1e} from those of a training that was not stopped")
    return f"resumed weights {apart:.1e} from those of a training that was not stopped"


def check_bundle(task: str, device: str, folder: Path) -> None:
    """All checks of a bundle."""
    checks = Checks(folder / f"{task}.json")
    checks(f"{task}: train, validate, stop, resume", lambda: trained(task, folder, device))
    for workflow, column in (("evaluate", FIGURES[task]), ("inference", INFERRED[task])):
        references: list[np.ndarray] = []

        def measured(precision: str, where: str, name: str = "", workflow: str = workflow, column: str = column,
                     **changes: Any) -> np.ndarray:  # fmt: skip
            output = f"{workflow}_{where}_{precision}{name}"
            return table(run(task, workflow, folder, where, output, precision=precision, **changes), column)

        def reference(references: list[np.ndarray] = references, measured: Any = measured) -> str:
            references.append(measured("fp32", "cpu"))
            return f"{len(references[0])} cases"

        if not checks(f"{task}: {workflow} on the CPU", reference):
            continue
        for precision in ("fp32", *(["bf16", "fp16"] if device == "cuda" else [])):  # a CPU may take minutes
            checks(
                f"{task}: {workflow} in {precision}",
                lambda p=precision, m=measured, r=references: compared(m(p, device, "_device"), r[0], WITHIN[p]),
            )
    if device == "cuda":
        checks(f"{task}: train in fp16, with a loss scale", lambda: scaled(task, folder))
    if task == "segment":
        checks("segment: mirrored windows, probabilities, asymmetry", lambda: options(folder, device))


def scaled(task: str, folder: Path) -> str:
    """An epoch in fp16: its weights are finite, or no checkpoint is written; and how many steps were skipped."""
    home = folder / "fp16"
    run(task, "train", home, "cuda", "train", precision="fp16", max_epochs=1, dataset_dir=str(folder / "cohort"))
    content = state(home / task)
    return f"{content['trainer']['iteration']} steps, {content['step_guard']['skipped']} skipped"


def options(folder: Path, device: str) -> str:
    """Inference of the segmenter with all that it can write, and mirrored windows."""
    changes = {"mirror_tta": True, "save_asymmetry": True, "save_probabilities": True}
    home = run("segment", "inference", folder, device, "options", **changes)
    counts = {kind: len(list(home.rglob(f"*_{kind}.nii.gz"))) for kind in ("pred", "probability", "asymmetry")}
    if set(counts.values()) != {2}:
        raise CheckError(f"expected 2 files of each kind, got {counts}")
    return f"files: {counts}"


def main(task: str, device: str, folder: str) -> None:
    """Check one bundle.

    Args:
        task: pretrain, classify or segment.
        device: cuda or cpu.
        folder: holds `cohort`; for all that is written.
    """
    torch.set_num_threads(4 if device == "cuda" else 1)
    check_bundle(task, device, Path(folder))


if __name__ == "__main__":
    fire.Fire(main)
