"""Run a study, or make the page of evidence.

`sa-swin study studies/classify.yaml --work WORK` runs what is missing of the grid and writes the study's JSON;
`sa-swin study evidence` makes `docs/evidence.md` from all of them; `sa-swin study worth` is the ready study of any
cohort.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from custom.support.errors import UserError
from custom.support.files import write_whole
from sa_swin.phantom.cohort import words
from sa_swin.study import cells, evidence, worth
from sa_swin.study.cohort import make_cohort
from sa_swin.study.plan import Study, StudyError
from sa_swin.study.summary import collect, summarize


def run(
    study: str,
    work: str,
    results: str = "studies/results",
    workers: int = 1,
    device: str | Sequence[str] = "cpu",
    only: str | None = None,
) -> None:
    """Run the cells of a study that have not run yet, and write its JSON: scores, figures and comparisons.

    Interrupted, it goes on where it stopped: a cell is known by a digest of its settings. Not for clinical use.

    Args:
        study: YAML file of the study.
        work: folder for the cohort and the cells; studies on one cohort may share it.
        results: folder of the JSON, named after the study.
        workers: cells that run side by side.
        device: such as cpu, cuda:0 or cuda:0,cuda:1; workers take turns among them.
        only: run only the cells whose name holds this text, such as "seed 0".
    """
    try:
        content, failures = run_study(Study(study), Path(os.path.abspath(work)), workers, words(device), only)
    except UserError as error:
        sys.exit(f"sa-swin study: {error}")
    target = Path(results) / f"{content['study']['name']}.json"
    write_whole(target, evidence.dumps(content))
    print(f"{target}: {len(content['arms'])} arms, {len(content['missing'])} still missing")
    stop_if_failed(failures)


def run_study(
    plan: Study, folder: Path, workers: int, devices: Sequence[str], only: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Run what is missing; the content of the study's JSON, and why cells failed, by their name."""
    make_cohort(plan, folder, workers)
    wanted = [cell for cell in plan.cells() if only is None or str(only) in cell.name]
    runs = cells.run_all(wanted, folder, devices, workers)
    failures = {c.name: why for c, why in tqdm(runs, "cells", len(wanted), unit="cell", disable=None) if why}
    collected = collect(plan, folder)
    return collected | {"summary": summarize(plan, collected)}, failures


def stop_if_failed(failures: Mapping[str, str]) -> None:
    """End with what went wrong, if anything did."""
    if failures:
        sys.exit("sa-swin study: failed:\n" + "\n".join(f"  {name}: {why}" for name, why in failures.items()))


def run_worth(
    work: str,
    dataset_dir: str,
    task: str = "segment",
    spacing: float | Sequence[float] = (3.0, 3.0, 5.0),
    spatial_size: int | Sequence[int] = (64, 64, 32),
    roi_size: int | Sequence[int] = (32, 64, 32),
    steps: int = 400,
    folds: int = 3,
    seeds: int = 3,
    workers: int = 1,
    device: str | Sequence[str] = "cpu",
    only: str | None = None,
    allow_outside: bool = False,
) -> None:
    """Is symmetry worth it on your cohort? Train with and without the counterpart, and say so on a page.

    Every subject is tested once, in folds. Interrupted, it goes on where it stopped. Writes WORK/worth.md, with the
    verdict, the paired differences and the costs, and WORK/worth.json. Not for clinical use.

    Args:
        work: folder for the aligned cohort, the cells and the page.
        dataset_dir: cohort with datalists, from sa-swin cohort build, phantom or prepare.
        task: segment, measured by Dice, or classify, of two classes, measured by AUC.
        spacing: mm per voxel of the aligned volumes, one number or three.
        spatial_size: voxels of the aligned volumes.
        roi_size: voxels that the segmenter sees.
        steps: of each training.
        folds: in each of which other subjects are tested.
        seeds: trainings of each arm and fold.
        workers: cells that run side by side.
        device: such as cpu, cuda:0 or cuda:0,cuda:1; workers take turns among them.
        only: run only the cells whose name holds this text, such as "seed 0".
        allow_outside: read files outside of dataset_dir, too, where absolute paths, .. and symlinks may lead.
    """
    folder = Path(os.path.abspath(work))
    try:
        grid = {
            "spacing": spacing if isinstance(spacing, float | int) else list(spacing),
            "spatial_size": voxels("spatial_size", spatial_size),
        }
        settings = {"roi_size": voxels("roi_size", roi_size), "num_samples": 1} if task == "segment" else {}
        plan = worth.content(task, str(dataset_dir), grid, settings, steps, folds, seeds, allow_outside)
        if task == "segment":
            worth.refuse_classes(Path(str(dataset_dir)), allow_outside)
        study, failures = run_study(Study(worth.write_plan(plan, folder)), folder, workers, words(device), only)
        write_whole(folder / "worth.json", evidence.dumps(study))
        print(f"{worth.write_page(study, folder) if not study['missing'] else folder}: {worth.verdict(study)}")
    except UserError as error:
        sys.exit(f"sa-swin study: {error}")
    stop_if_failed(failures)


def voxels(name: str, size: int | Sequence[int]) -> list[int]:
    """Voxels along the three axes, from one number or three.

    Raises:
        StudyError: when they are neither, or not positive.
    """
    sides = [size] * 3 if isinstance(size, int) else list(size)
    if len(sides) != 3 or min(sides) < 1:
        raise StudyError(f"{name} must be one or three numbers of voxels, such as 64,64,32; got {size}")
    return sides


def make_evidence(results: str = "studies/results", output: str = "docs/evidence.md") -> None:
    """Make the page of evidence and its plots from the studies' JSON files.

    Args:
        results: folder of the JSON files.
        output: the page; plots go into a folder `evidence` beside it.
    """
    try:
        written = evidence.write(Path(results), Path(output))
    except UserError as error:
        sys.exit(f"sa-swin study: {error}")
    print("\n".join(str(path) for path in written))
