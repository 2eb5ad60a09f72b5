"""The weights that an app was given: what they are for, what they were trained on, and what they say of scans.

Each set of weights is run as `sa-swin predict` runs it, in a process of its own, so that packages of different code can
be used together.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from custom.evaluation.batch_inference import finished_entries
from custom.support.errors import UserError
from custom.support.files import write_whole
from custom.volumes.saving import result_path
from custom.weights.provenance import records_of
from custom.weights.settings import settings_in, sizes
from custom.weights.transfer import load_checkpoint, weights_digest
from sa_swin.app.scans import AppScan
from sa_swin.bundles import bundle_command, bundle_folder
from sa_swin.release.archive import read_package
from sa_swin.release.verification import verify

Prediction = dict[str, Any] | str
"""A scan's row as its bundle has it, with `pred` and `probability` as paths, or why there is none."""


@dataclass(frozen=True)
class Model:
    """Trained weights, in a form that other processes can receive.

    Args:
        task: `segment` or `classify`.
        bundle: folder whose configs run them.
        checkpoint: the weights' file.
        settings: that they were trained with.
        digest: SHA-256 of the weights.
        seen: what they were trained on, a sentence each.
        calibration: of the classes' probabilities; empty where there are none.
    """

    task: str
    bundle: Path
    checkpoint: Path
    settings: Mapping[str, Any]
    digest: str
    seen: tuple[str, ...]
    calibration: str = ""

    @property
    def names(self) -> list[str]:
        """Names of the classes, the background's included."""
        given = self.settings.get("class_names")
        count = int(self.settings.get("num_classes", 2))
        default = ["background", "lesion"] if self.task == "segment" and count == 2 else []
        return list(given or default or [f"class {index}" for index in range(count)])

    def about(self) -> dict[str, Any]:
        """Plain facts, for files."""
        kept = ("modality", "in_channels", "spacing", "spatial_size", "counterpart", "training_cases")
        settings = {name: self.settings[name] for name in kept if name in self.settings}
        return {"task": self.task, "sha256": self.digest, "trained_on": list(self.seen), "settings": settings}


def load_model(path: str, work: Path) -> Model:
    """Weights from a package, zip or folder, or from a folder or file of a training.

    Args:
        path: what was given.
        work: folder that zips are unpacked in.

    Raises:
        UserError: no weights there, a package that is not as it was built, or weights of pretraining.
    """
    folder = Path(path)
    if folder.is_file() and folder.suffix == ".zip":
        folder = _unpacked(folder, work)
    checkpoint = next((p for p in (folder / "models" / "model.pt", folder / "model.pt", folder) if p.is_file()), None)
    if checkpoint is None:
        raise UserError(f"no weights at {path}: expected a package of `sa-swin release`, or a folder with model.pt")
    tensors = load_checkpoint(checkpoint)
    task = _task(tensors, checkpoint)
    own = folder.resolve() if (folder / "configs").is_dir() else bundle_folder(task)
    settings = (settings_in(checkpoint) or {}) | {k: v for k, v in sizes(tensors).items() if k == "num_classes"}
    records = records_of(checkpoint)
    seen = tuple(
        f"{r['stage']}, {r['section']} list: {len(r['subjects'])} subjects, label: {r['label']}" for r in records
    )
    basis = _calibration(tensors, records) if task == "classify" else ""
    return Model(task, own, checkpoint.resolve(), settings, weights_digest(checkpoint), seen, basis)


def _unpacked(path: Path, work: Path) -> Path:
    files = read_package(path)
    if problems := verify(files):
        raise UserError(f"{path} is not as it was built: " + "; ".join(problems))
    for name, content in files.items():
        write_whole(work / "packages" / path.stem / name, content)
    return work / "packages" / path.stem


def _task(tensors: Mapping[str, torch.Tensor], path: Path) -> str:
    heads = (("out.", "segment"), ("contrastive_head.", "pretrain"), ("head.", "classify"))
    task = next((task for prefix, task in heads if any(name.startswith(prefix) for name in tensors)), None)
    if task is None:
        raise UserError(f"{path} holds no network of this project's segmentation or classification")
    if task == "pretrain":
        raise UserError(f"{path} holds weights of pretraining; the app takes those of segmentation and classification")
    return task


def _calibration(tensors: Mapping[str, torch.Tensor], records: Sequence[Mapping[str, Any]]) -> str:
    temperature, bias = tensors.get("temperature"), tensors.get("class_bias")
    if temperature is None or bias is None or (float(temperature) == 1 and not bias.any()):
        return "not calibrated: as they were trained"
    held = sum(len(r["subjects"]) for r in records if (r["stage"], r["section"]) == ("classify", "validation"))
    basis = (
        f"validation cases of the training, subjects: {held or 'not recorded'}, temperature {float(temperature):.3g}"
    )
    return f"calibrated ({basis}), and no better than these cases stand for this one"


def predict(
    model: Model, scans: Sequence[AppScan], dataset: Path, work: Path, untrusted: str, allow_outside: bool
) -> dict[str, Prediction]:
    """What weights say of scans, by name. What an earlier try has finished in the same folder is taken from there.

    Raises:
        UserError: the run failed before any scan.
    """
    output, datalist = work / model.task, work / f"{model.task}.json"
    entries = [{"image": list(scan.images), "subject": scan.name} for scan in scans]
    write_whole(datalist, json.dumps({"testing": entries}))
    options = {"dataset_dir": dataset, "datalist": datalist, "output_dir": output, "checkpoint": model.checkpoint}
    options |= {"untrusted": untrusted, "allow_outside": allow_outside, "num_workers": 0}
    options |= {"save_probabilities": True} if model.task == "segment" else {}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    told = _run(bundle_command("predict", model.bundle, words))
    rows = {image: entry["row"] for image, entry in finished_entries(output / "finished.jsonl")[1].items()}
    found = {s.name: _prediction(s.paths(dataset)[0], rows, told, dataset, output) for s in scans}
    if not rows and not any("left out: " in line for line in told):
        raise UserError(f"{model.checkpoint} could not be used: {told[-1].removeprefix('error: ') if told else ''}")
    return found


def _run(command: Sequence[str]) -> list[str]:
    """Run a command, its output shown on stderr as it comes; the lines of it."""
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            sys.stderr.write(line)
            lines.append(line.strip())
    return [line for line in lines if line]


def _prediction(image: str, rows: Mapping[str, Any], told: Sequence[str], dataset: Path, output: Path) -> Prediction:
    if image not in rows:
        reasons = (line.partition("left out: ")[2] for line in told if "left out: " in line and image in line)
        return next(reasons, f"{image}: no prediction; the log says why")
    files = {kind: str(result_path(image, dataset, output, kind)) for kind in ("pred", "probability")}
    return rows[image] | files
