"""Run the cells of a study: each a training and an evaluation of a bundle, in a folder of its own, once."""

import contextlib
import csv
import itertools
import json
import multiprocessing
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from monai.utils import ensure_tuple_rep

from custom.support.errors import UserError, root_cause
from custom.support.files import write_whole
from custom.support.run_record import commit
from custom.weights.transfer import load_checkpoint
from sa_swin.study.cohort import of_cell, read_lists
from sa_swin.study.controls import ControlledContract
from sa_swin.study.done import is_done, list_of, split_of
from sa_swin.study.normative import NormativeAsymmetry
from sa_swin.study.plan import BUNDLES, Cell

CONFIGS = {"train": ("train",), "evaluate": ("train", "evaluate")}
FIXED = {"num_workers": 0, "cache_rate": 1.0, "pretrained_minimum": 0.5}
"""Settings of every cell. No loader processes: volumes are in memory, and cells run side by side."""
SCORES = {"pretrain": "asymmetry", "classify": "probability_1", "segment": "dice"}
"""Column of `cases.csv` that a task is measured by."""


def run_cell(cell: Cell, folder: Path, device: str, alone: bool = False) -> None:
    """Train and evaluate a cell, a classifier without a control on the reflected brains, too; what is done stays.

    Args:
        cell: the cell.
        folder: of the study's work: its lists and its cells are in it.
        device: such as `cpu` or `cuda:0`.
        alone: whether this process runs nothing else, so that its memory is the cell's.
    """
    home = folder / "cells" / cell.digest
    home.mkdir(parents=True, exist_ok=True)
    settings = {} if cell.arm.task == "normative" else overrides(cell, folder, device)
    with (home / "log.txt").open("a") as log, contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
        split = split_of(cell, folder)
        if not is_done(home, split):
            (home / "reflected.json").unlink(missing_ok=True)
            started = time.monotonic()
            measure = normative_cases if cell.arm.task == "normative" else train_and_evaluate
            cases = measure(cell, folder, settings)
            seconds = round(time.monotonic() - started, 1)
            result = {"cell": cell.name, "seconds": seconds, "commit": commit(), "split": split, "cases": cases}
            result |= {"memory_mb": peak_memory(device)} if alone else {}
            result |= calibration(home) if cell.arm.task == "classify" else {}
            write_whole(home / "result.json", json.dumps(result, indent=1) + "\n")
        if is_mirrored(cell) and not (home / "reflected.json").exists():
            evaluate_reflected(home, settings)


def is_mirrored(cell: Cell) -> bool:
    """Whether a cell classifies by the mirror image, so that swapping image and counterpart reflects a brain."""
    return cell.arm.task == "classify" and not cell.control and cell.settings.get("counterpart", "mirror") == "mirror"


def peak_memory(device: str) -> float:
    """Most memory that this process has held, MB: of the GPU, or on a CPU all of it, with the cohort."""
    if torch.device(device).type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)  # Linux counts in kB


def train_and_evaluate(cell: Cell, folder: Path, settings: Mapping[str, Any]) -> dict[str, float]:
    """Train a cell and measure it on the test subjects: their scores by subject."""
    home = folder / "cells" / cell.digest
    for workflow in CONFIGS:
        run_bundle(cell.arm.task, workflow, settings)
    for path in (home / "models").glob("*.ckpt"):  # nobody goes on from them
        path.unlink()
    return read_cases(home / "evaluate" / "cases.csv", SCORES[cell.arm.task])


def calibration(home: Path) -> dict[str, float]:
    """What a trained classifier of two classes was calibrated with, of the logit of the second."""
    weights = load_checkpoint(home / "models" / "model.pt")
    bias = weights["class_bias"]
    return {"temperature": float(weights["temperature"]), "bias": float(bias[1] - bias[0])}


def normative_cases(cell: Cell, folder: Path, settings: Mapping[str, Any]) -> dict[str, float]:
    """Normative asymmetry of the test subjects against the healthy training subjects, by subject."""
    dataset_dir, datalists = of_cell(cell, folder)
    lists = read_lists(datalists / "classify.json")
    contract = ControlledContract(**control_of(cell, folder), **cell.settings, align=False)
    spacing = tuple(ensure_tuple_rep(cell.settings["spacing"], 3))

    def pair(entry: Mapping[str, Any]) -> torch.Tensor:
        return contract({"image": str(dataset_dir / entry["image"])})["image"].as_tensor()

    norm = NormativeAsymmetry.of((pair(entry) for entry in lists["training"] if entry["healthy"]), spacing)
    scores: dict[str, list[float]] = {}
    for entry in lists["testing"]:
        scores.setdefault(entry["subject"], []).append(norm.score(pair(entry)))
    return {subject: round(fmean(own), 6) for subject, own in scores.items()}


def evaluate_reflected(home: Path, settings: Mapping[str, Any]) -> None:
    """Measure a trained classifier on the reflected test brains, and leave `reflected.json` in its folder."""
    reflected = {"contract::kind": "reflected", "output_dir": str(home / "reflected")}
    run_bundle("classify", "evaluate", {**settings, **reflected})
    cases = read_cases(home / "reflected" / "cases.csv", SCORES["classify"])
    write_whole(home / "reflected.json", json.dumps(cases, indent=1) + "\n")


def overrides(cell: Cell, folder: Path, device: str) -> dict[str, Any]:
    """The bundle's settings for a cell, with its paths."""
    home = folder / "cells" / cell.digest
    dataset_dir, datalists = of_cell(cell, folder)
    network = {"network_def": dict(cell.network)} if cell.network else {}
    weights = pretrained(cell, folder)
    return {
        **FIXED,
        **({} if weights else {"asymmetry_map": False}),  # a variant's to ask for, whatever the bundle's default is
        **cell.settings,
        "align": False,
        "val_interval": cell.settings["max_epochs"],  # the last weights are the ones measured, in every arm alike
        "bundle_root": str(BUNDLES / f"sa_swin_{cell.arm.task}"),
        **network,
        "dataset_dir": str(dataset_dir),
        "datalist": str(datalists / f"{cell.arm.task}.json"),
        "output_dir": str(home / "evaluate"),
        "ckpt_dir": str(home / "models"),
        "pretrained": weights,
        "device": f"$torch.device({device!r})",
        "contract::_target_": "sa_swin.study.controls.ControlledContract",
        **{f"contract::{name}": value for name, value in control_of(cell, folder).items()},
    }


def pretrained(cell: Cell, folder: Path) -> str:
    """The weights that a cell starts from: those of a cell before it, or a file or `default` that its variant names."""
    if cell.start:
        return str(folder / "cells" / cell.start.digest / "models" / "model.pt")
    return str(cell.settings.get("pretrained", ""))


def control_of(cell: Cell, folder: Path) -> dict[str, Any]:
    """Keyword arguments of the cell's control, with what it needs of the cohort."""
    if cell.control.get("kind") != "other_subject":
        return dict(cell.control)
    dataset_dir, datalists = of_cell(cell, folder)
    return {**cell.control, "datalist": str(datalists / list_of(cell)), "dataset_dir": str(dataset_dir)}


def run_bundle(task: str, workflow: str, settings: Mapping[str, Any]) -> None:
    """One workflow of a bundle, in this process, as `python -m monai.bundle run` does it."""
    configs = [str(BUNDLES / f"sa_swin_{task}" / "configs" / f"{name}.yaml") for name in CONFIGS[workflow]]
    further = {"save_masks": False} if (task, workflow) == ("segment", "evaluate") else {}
    bundle = ConfigWorkflow(configs, logging_file=False, workflow_type="train", **settings, **further)
    bundle.initialize()
    bundle.run()
    bundle.finalize()


def read_cases(path: Path, score: str) -> dict[str, float]:
    """Score of every subject, the mean over its scans, from an evaluation's table.

    Raises:
        UserError: when a case has no finite score.
    """
    with path.open(newline="") as file:
        rows = [(row["subject"], row[score]) for row in csv.DictReader(file)]
    if missing := [subject for subject, value in rows if value == ""]:
        raise UserError(f"{path}: no {score} of {', '.join(missing)}")
    scans: dict[str, list[float]] = {}
    for subject, value in rows:
        scans.setdefault(subject, []).append(float(value))
    return {subject: round(sum(values) / len(values), 6) for subject, values in scans.items()}


def waves(cells: Sequence[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Cells that start from nothing, then those that start from one of them."""
    return [cell for cell in cells if cell.start is None], [cell for cell in cells if cell.start]


def run_all(
    cells: Sequence[Cell], folder: Path, devices: Sequence[str], workers: int
) -> Iterator[tuple[Cell, str | None]]:
    """Run cells here or in several processes; each comes back with what went wrong, if anything did.

    Args:
        cells: of the study.
        folder: of its work.
        devices: the workers take turns among them.
        workers: processes.
    """
    if workers == 1:
        yield from ((cell, attempt(cell, folder, devices[0])) for wave in waves(cells) for cell in wave)
        return
    for wave in waves(cells):
        yield from side_by_side(wave, folder, devices, workers)


def side_by_side(
    cells: Sequence[Cell], folder: Path, devices: Sequence[str], workers: int
) -> Iterator[tuple[Cell, str | None]]:
    """Run cells in processes of their own; where one is killed, what has not ended is run again, one by one."""
    left = dict(zip(cells, itertools.cycle(devices), strict=False))
    for number in [workers, *[1] * len(cells)]:
        with processes(number) as pool:
            batch = left if number > 1 else dict([next(iter(left.items()))])
            futures = {pool.submit(attempt, cell, folder, where, alone=True): cell for cell, where in batch.items()}
            for future in as_completed(futures):
                cell = futures[future]
                try:
                    yield cell, future.result()
                except BrokenProcessPool:
                    if number > 1:
                        continue
                    yield cell, f"its process was killed, for its memory perhaps; see {folder / 'cells' / cell.digest}"
                del left[cell]
        if not left:
            return


def processes(number: int) -> ProcessPoolExecutor:
    """A pool of processes that run a cell each, on one thread."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(number, context, initializer=torch.set_num_threads, initargs=(1,), max_tasks_per_child=1)


def attempt(cell: Cell, folder: Path, device: str, alone: bool = False) -> str | None:
    """Run a cell; what went wrong in a line, or None. One bad cell never loses the others."""
    try:
        run_cell(cell, folder, device, alone)
    except Exception as error:
        cause = root_cause(error)
        return f"{type(cause).__name__}: {cause}; see {folder / 'cells' / cell.digest / 'log.txt'}"
    return None
