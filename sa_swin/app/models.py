"""The weights that an app was given: what they are for, what they were trained on, and what they say of scans.

Each set of weights is run as `sa-swin predict` runs it, in a process of its own, so that packages of different code can
be used together.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from custom.evaluation.batch_inference import FAILED, failed_reasons, finished_entries, stamp
from custom.evaluation.conformal import FILE
from custom.evaluation.ensemble import DISAGREEMENT
from custom.support.errors import UserError
from custom.support.files import digest_of, write_whole
from custom.volumes.saving import result_path
from custom.weights.provenance import records_of
from custom.weights.settings import names_to, settings_in, sizes, task_of
from custom.weights.transfer import load_checkpoint, weights_digest
from sa_swin.app.scans import AppScan
from sa_swin.bundles import bundle_command, bundle_folder, checkpoint_at, checkpoint_option
from sa_swin.release.archive import read_package
from sa_swin.release.verification import verify

ScanPrediction = dict[str, Any] | str
"""A scan's row as its bundle has it, with `pred` and `probability` as paths, or why there is none."""


@dataclass(frozen=True)
class Model:
    """Trained weights, in a form that other processes can receive.

    Args:
        task: `segment` or `classify`.
        bundle: folder whose configs run them.
        checkpoints: the weights' files, several where they are used together.
        settings: that they were trained with.
        digests: SHA-256 of each of the weights.
        seen: what they were trained on, a sentence each.
        calibration: of the classes' probabilities; empty where there are none.
    """

    task: str
    bundle: Path
    checkpoints: tuple[Path, ...]
    settings: Mapping[str, Any]
    digests: tuple[str, ...]
    seen: tuple[str, ...]
    calibration: str = ""

    @property
    def names(self) -> list[str]:
        """Names of the classes, the background's included."""
        count = int(self.settings.get("num_classes", 2))
        return names_to(count, self.settings.get("class_names"), self.task == "segment")

    def figures(self) -> str:
        """The figures of intervals beside the first weights, as text; empty where there are none."""
        path = self.checkpoints[0].with_name(FILE)
        return path.read_text(errors="replace") if path.is_file() else ""

    def about(self) -> dict[str, Any]:
        """Plain facts, for files."""
        kept = ("modality", "in_channels", "spacing", "spatial_size", "counterpart", "asymmetry_map", "training_cases")
        settings = {name: self.settings[name] for name in kept if name in self.settings}
        return {"task": self.task, "sha256": list(self.digests), "trained_on": list(self.seen), "settings": settings}


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
    checkpoint = checkpoint_at(folder)
    tensors = load_checkpoint(checkpoint)
    task = _task(tensors, checkpoint)
    own = folder.resolve() if (folder / "configs").is_dir() else bundle_folder(task)
    settings = (settings_in(checkpoint) or {}) | {k: v for k, v in sizes(tensors).items() if k == "num_classes"}
    records = records_of(checkpoint)
    seen = tuple(
        f"{r['stage']}, {r['section']} list: {len(r['subjects'])} subjects, label: {r['label']}" for r in records
    )
    basis = _calibration(tensors, records) if task == "classify" else ""
    return Model(task, own, (checkpoint.resolve(),), settings, (weights_digest(checkpoint),), seen, basis)


def together(one: Model, other: Model) -> Model:
    """Two sets of weights of one task as one, whose probabilities are averaged; that they fit, the bundle asks."""
    basis = one.calibration if one.calibration == other.calibration else f"{one.calibration}; {other.calibration}"
    return replace(
        one,
        checkpoints=one.checkpoints + other.checkpoints,
        digests=one.digests + other.digests,
        seen=tuple(dict.fromkeys(one.seen + other.seen)),
        calibration=basis,
    )


def _unpacked(path: Path, work: Path) -> Path:
    files = read_package(path)
    if problems := verify(files):
        raise UserError(f"{path} is not as it was built: " + "; ".join(problems))
    folder = work / "packages" / digest_of(path) / path.stem  # packages of several folds may have one name
    for name, content in files.items():
        write_whole(folder / name, content)
    return folder


def _task(tensors: Mapping[str, torch.Tensor], path: Path) -> str:
    task = task_of(tensors)
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
) -> dict[str, ScanPrediction]:
    """What weights say of scans, by name. What an earlier try has finished in the same folder is taken from there.

    Raises:
        UserError: the run failed before any scan.
    """
    # of other weights, or other figures of theirs, what an earlier try has left is not taken
    which = hashlib.sha256(json.dumps([model.digests, model.figures(), untrusted]).encode()).hexdigest()[:12]
    output, datalist = work / f"{model.task}_{which}", work / f"{model.task}.json"
    entries = [{"image": list(scan.images), "subject": scan.name} for scan in scans]
    write_whole(datalist, json.dumps({"testing": entries}))
    options = {"dataset_dir": dataset, "datalist": datalist, "output_dir": output}
    options |= {"checkpoint": checkpoint_option(model.checkpoints)}
    options |= {"untrusted": untrusted, "allow_outside": allow_outside, "num_workers": 0}
    options |= {"save_probabilities": True} if model.task == "segment" else {}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    (output / FAILED).unlink(missing_ok=True)
    last = _run(bundle_command("predict", model.bundle, words))
    finished = finished_entries(output / "finished.jsonl")[1]
    failed = failed_reasons(output)
    current = {scan.paths(dataset)[0]: stamp({"image": scan.paths(dataset)}) for scan in scans}
    rows = {i: own["row"] for i, own in finished.items() if i not in failed and own["stamp"] == current.get(i)}
    if not rows and not failed:
        raise UserError(f"{model.checkpoints[0]} could not be used: {last.removeprefix('error: ')}")
    kinds = ("pred", "probability", DISAGREEMENT) if model.task == "segment" else ()
    found: dict[str, ScanPrediction] = {}
    for scan in scans:
        image = scan.paths(dataset)[0]
        files = {kind: str(result_path(image, dataset, output, kind)) for kind in kinds}
        unknown = f"{image}: no prediction; the log says why"
        found[scan.name] = rows[image] | files if image in rows else failed.get(image, unknown)
    return found


def _run(command: Sequence[str]) -> str:
    """Run a command, its output shown on stderr as it comes; the last line of it."""
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            sys.stderr.write(line)
            last = line.strip() or last
    return last
