"""An evaluation's figures, recomputed from its table of cases, with confidence intervals."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from custom.evaluation.metrics import classification_summary, pretext_summary, segmentation_summary
from custom.support.files import read_rows
from sa_swin.bootstrap import LEVEL, limits, resamples
from sa_swin.release.errors import ReleaseError

SUMMARIES: dict[str, Callable[[Sequence[dict[str, Any]]], dict[str, float]]] = {
    "sa_swin_pretrain": pretext_summary,
    "sa_swin_classify": classification_summary,
    "sa_swin_segment": segmentation_summary,
}


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate.yaml` wrote.

    Args:
        metrics: name to value; counts are named `n` and `n_...`. A figure that the cases do not define is left out.
        intervals: name to the bootstrapped confidence interval, of the figures that are not counts.
        subjects: of the cases.
        context: further facts of the evaluation: its section, its seed, what the leakage guard found.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    subjects: tuple[str, ...]
    context: dict[str, Any]

    def entries(self) -> dict[str, Any]:
        """As `eval_metrics` of the metadata: each figure, its interval under `<name>_ci95`, and the counts."""
        entries: dict[str, Any] = {name: _short(value) for name, value in self.metrics.items()}
        entries |= {
            f"{name}_ci{round(100 * LEVEL)}": [_short(v) for v in interval] for name, interval in self.intervals.items()
        }
        return entries


def read_evaluation(folder: Path, bundle: str, weights_sha256: str) -> Evaluation:
    """Read `cases.json` and `cases.csv`, and resample the cases for the intervals.

    Args:
        folder: the output folder of an evaluation.
        bundle: name of the bundle.
        weights_sha256: `custom.weights.weights_digest` of the weights that are released.

    Raises:
        ReleaseError: no such evaluation, one of other weights, or one whose figures are not those of its cases.
    """
    try:
        report = json.loads((folder / "cases.json").read_text())
        rows = read_cases(folder / "cases.csv")
        stated = {name: value for name, value in report["metrics"].items() if value is not None}
        computed = _defined(SUMMARIES[bundle](rows))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ReleaseError(f"{folder} holds no evaluation of {bundle} (cases.json, cases.csv): {error}") from error
    if report.get("weights_sha256") != weights_sha256:
        found = report.get("weights_sha256", "not recorded")
        raise ReleaseError(f"{folder / 'cases.json'} is of other weights: {found}, not {weights_sha256}")
    differing = [n for n, v in stated.items() if not math.isclose(v, computed.get(n, math.nan), rel_tol=1e-4)]
    if differing := differing or sorted(stated.keys() ^ computed.keys()):
        raise ReleaseError(f"{folder / 'cases.json'} does not agree with its cases.csv: {', '.join(differing)}")
    context = {name: report[name] for name in ("section", "seed", "leakage") if name in report}
    subjects = tuple(str(row["subject"]) for row in rows)
    return Evaluation(computed, bootstrap(rows, SUMMARIES[bundle]), subjects, context)


def bootstrap(
    rows: Sequence[dict[str, Any]], summary: Callable[[Sequence[dict[str, Any]]], Mapping[str, float]]
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of every figure over resampled cases; seed 0. Undefined figures of a resample are left out.

    References:
        Efron, Tibshirani: An Introduction to the Bootstrap, 1993, chapter 13.
    """
    drawn: dict[str, list[float]] = {}
    for draw in resamples(np.zeros(len(rows))):
        for name, value in _defined(summary([rows[i] for i in draw])).items():
            drawn.setdefault(name, []).append(value)
    return {name: limits(np.array(values)) for name, values in drawn.items() if not is_count(name)}


def is_count(name: str) -> bool:
    """Whether a figure is a number of cases."""
    return name == "n" or name.startswith("n_")


def read_cases(path: Path) -> list[dict[str, Any]]:
    """The rows of a table of cases: numbers as numbers, what is not defined as NaN, words as text."""
    return [{name: _value(name, text) for name, text in row.items()} for row in read_rows(path)]


def _value(name: str, text: str) -> Any:
    if name in ("subject", "image"):
        return text
    if text in ("True", "False"):
        return text == "True"
    if name in ("label", "prediction"):
        return int(text)
    try:
        return float(text or "nan")
    except ValueError:  # a word: a side, how the plane was found
        return text


def _defined(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _short(value: float) -> float:
    return int(value) if float(value).is_integer() and abs(value) >= 2 else float(f"{value:.4g}")
