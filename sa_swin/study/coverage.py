"""Split-conformal intervals of volumes on held-out folds of a study on real heads: coverage asked, and found.

`sa-swin study coverage --study studies/gliomas_t1w.yaml --work WORK` writes the tables.

Every patient of a fold is measured by radii that the other folds' patients give; none was seen by the training that
predicted it. Each seed is a repetition on the same patients.
"""

import csv
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from custom.evaluation.conformal import radius, volume_interval, volume_score
from sa_swin.study.done import is_done, split_of
from sa_swin.study.plan import Study, StudyError


def volumes(path: Path) -> list[tuple[float, float]]:
    """True and predicted volume (ml) of each subject of an evaluation, with the scan that was predicted worst."""
    worst: dict[str, tuple[float, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            case = float(row["volume_ml"]), float(row["predicted_ml"])
            worst[row["subject"]] = max(case, worst.get(row["subject"], case), key=lambda own: volume_score(*own))
    return list(worst.values())


def intervals(folds: Sequence[Sequence[tuple[float, float]]], asked: float) -> list[tuple[bool, float]]:
    """Of each case whether its interval holds its volume, and the interval's upper end over its lower, each + 1 ml."""
    found = []
    for number, fold in enumerate(folds):
        others = [case for other in range(len(folds)) if other != number for case in folds[other]]
        reach = radius([volume_score(*case) for case in others], asked)
        for true, predicted in fold:
            low, high = volume_interval(predicted, reach)
            found.append((low <= true <= high, (high + 1) / (low + 1)))
    return found


def rows(study: Study, work: Path, asked: float) -> list[dict[str, Any]]:
    """A row for each arm and seed whose folds have all run."""
    found = []
    for arm in study.arms:
        for seed in study.content["seeds"]:
            cells = [study.cell(arm, seed, fold) for fold in study.folds]
            homes = [work / "cells" / cell.digest for cell in cells]
            if all(is_done(home, split_of(cell, work)) for home, cell in zip(homes, cells, strict=True)):
                own = intervals([volumes(home / "evaluate" / "cases.csv") for home in homes], asked)
                held, ratio = zip(*own, strict=True)
                low, high = binomtest(sum(held), len(held)).proportion_ci()
                share = {"n": len(held), "held": sum(held), "low": low, "high": high}
                found.append({"arm": arm.name, "seed": seed, **share, "ratio": float(np.median(ratio))})
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a line for each row."""
    lines = ["| arm | seed | n | within | share | 95 % (binomial) | upper end over lower, median |", "|---" * 7 + "|"]
    for r in found:
        share = f"{r['held'] / r['n']:.3f} | {r['low']:.3f} to {r['high']:.3f}"
        lines.append(f"| {r['arm']} | {r['seed']} | {r['n']} | {r['held']} | {share} | {r['ratio']:.1f} |")
    return "\n".join(lines)


def write_coverage(study: str, work: str, output: str = "benchmarks/results", asked: float = 0.9) -> None:
    """How often split-conformal intervals of volumes hold, on the held-out folds of a study of segmentation.

    Writes coverage_<study>_<date>.md and .json. Not for clinical use.

    Args:
        study: YAML file of a study with folds.
        work: folder of its work.
        output: folder of the results.
        asked: coverage, 0.5 to below 1.

    Raises:
        StudyError: a study without folds or without a finished training, or another coverage.
    """
    if not 0.5 <= asked < 1:
        raise StudyError(f"--asked is a share from 0.5 to below 1, such as 0.9 for 90 %; got {asked:g}")
    plan = Study(study)
    if plan.folds == [None]:
        raise StudyError(f"{study} has no folds: each fold is measured by the others; give it `folds: 3`")
    if not (found := rows(plan, Path(work), asked)):
        raise StudyError(f"{work} holds no seed of {study} whose folds have all run")
    path = Path(output) / f"coverage_{plan.content['name']}_{datetime.date.today()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    title = plan.content.get("title", plan.content["name"])
    about = (
        f"{title}: split-conformal intervals of volumes, {asked:.0%} asked, each fold by the others. "
        "Research only, not for clinical use."
    )
    path.with_suffix(".md").write_text(f"# Coverage of volumes\n\n{about}\n\n{table(found)}\n")
