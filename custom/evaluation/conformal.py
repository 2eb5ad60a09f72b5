"""Intervals and sets with a stated coverage: split-conformal prediction, from what a validation got wrong.

A *score* says how far the truth of a validation case is from its prediction. The *radius* is the score that a new case
keeps below with the coverage that is asked, whatever the network, if that case is exchangeable with those of the
validation: of such heads and scanners, read in the same way. Scans of one person are no cases of their own: each
subject counts once, with its largest score. A radius that too few subjects tell of is infinite.

    volume   log of (ml + 1), so that an interval is a factor for large volumes and a millilitre for the smallest
    side     the asymmetry index, whose interval meets left, both, or right
    class    1 - probability of the class, for each class by itself, so that the coverage holds in each

References:
    Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005; Sadinle, Lei, Wasserman, Least Ambiguous
    Set-Valued Classifiers, JASA 2019, for the sets of classes.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from custom.data.case import subject_of
from custom.support.errors import UserError
from custom.transforms.findings import ONE_SIDED, Row
from custom.weights.settings import same

FILE = "conformal.json"
"""Name of the file beside the weights that `Conformal` reads."""
HOW = ("counterpart", "overlap", "mirror_tta", "min_volume_ml")
"""Settings of an evaluation that the figures depend on, beside the weights."""
LEAST_ML = 1.0
"""Added to volumes before their logarithm."""
UNTRUSTED_PLANE = "the midsagittal plane cannot be trusted"

logger = logging.getLogger(__name__)


def radius(scores: Sequence[float] | np.ndarray, coverage: float) -> float:
    """The `ceil((n + 1) coverage)`-th smallest of n scores, which the next one keeps below with at least that chance.

    It is infinite where n is too small for that: at 90 %, below 9.

    Examples:
        >>> radius([3, 1, 2, 4, 5, 6, 7, 8, 9], 0.9), radius([1, 2, 3], 0.9)
        (9.0, inf)
    """
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)  # 10 x 0.9 is a little more than 9
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def volume_score(true_ml: float, predicted_ml: float) -> float:
    """How far two volumes are from each other, as the logarithm of a factor."""
    return abs(math.log((true_ml + LEAST_ML) / (predicted_ml + LEAST_ML)))


def volume_interval(predicted_ml: float, reach: float) -> tuple[float, float]:
    """Volumes (ml) whose `volume_score` is at most `reach`."""
    factor = math.exp(reach)
    return max(0.0, (predicted_ml + LEAST_ML) / factor - LEAST_ML), (predicted_ml + LEAST_ML) * factor - LEAST_ML


def sides_within(low: float, high: float) -> list[str]:
    """The sides of findings whose asymmetry index lies between two values, as `side_of` names them."""
    edge = 2 * ONE_SIDED - 1
    met = {"left": low <= -edge, "both": low < edge and high > -edge, "right": high >= edge}
    return [side for side, is_met in met.items() if is_met]


def class_set(probabilities: Sequence[float], radii: Sequence[float]) -> list[int]:
    """The classes that a case may be of: those whose score is within the radius of their own."""
    return [index for index, (p, reach) in enumerate(zip(probabilities, radii, strict=True)) if 1 - p <= reach]


def fit(rows: Sequence[Row], coverage: float) -> dict[str, Any]:
    """The radii that validation cases give, as `Conformal` takes them.

    Args:
        rows: of `classification_row` with labels, or of `segmentation_row`, each with its `subject`.
        coverage: asked, 0 to 1.

    Raises:
        UserError: no such rows, or another coverage.
    """
    if not 0.5 <= coverage < 1:
        raise UserError(f"a coverage is a share from 0.5 to below 1, got {coverage}")
    if not rows:
        raise UserError("no validation cases: expected an evaluation of heads whose midsagittal plane can be trusted")
    found = {"coverage": coverage, "subjects": len({subject_of(row) for row in rows})}
    if "probability_0" in rows[0] and "label" in rows[0]:
        return found | {"classes": fit_classes(rows, coverage)}
    if "predicted_asymmetry_index" not in rows[0] and "predicted_asymmetry_index_class1" not in rows[0]:
        raise UserError("expected the cases of an evaluation of segment or classify, by this version of the code")
    suffixes = [name.removeprefix("predicted_ml") for name in rows[0] if name.startswith("predicted_ml")]
    lesions = {suffix.removeprefix("_class") or "1": fit_lesions(rows, suffix, coverage) for suffix in suffixes}
    return found | {"lesions": lesions}


def fit_classes(rows: Sequence[Row], coverage: float) -> list[dict[str, Any]]:
    """Of each class the radius, and the number of subjects that it comes from."""
    found = []
    for index in range(sum(name.startswith("probability_") for name in rows[0])):
        own = [row for row in rows if row["label"] == index]
        found.append(fitted(largest(own, [1 - row[f"probability_{index}"] for row in own]), coverage))
    return found


def largest(rows: Sequence[Row], scores: Sequence[float]) -> list[float]:
    """The largest score of each subject; those that are not defined (NaN) are left out."""
    found: dict[str, float] = {}
    for row, score in zip(rows, scores, strict=True):
        if math.isfinite(score):
            subject = subject_of(row)
            found[subject] = max(score, found.get(subject, score))
    return list(found.values())


def fitted(scores: Sequence[float], coverage: float) -> dict[str, Any]:
    """The radius, None where it is infinite, for which JSON has no word, and how many subjects it comes from."""
    reach = radius(scores, coverage)
    return {"radius": reach if math.isfinite(reach) else None, "subjects": len(scores)}


def reach_of(found: Mapping[str, Any]) -> float:
    """The radius in what `fitted` gives."""
    return math.inf if found["radius"] is None else found["radius"]


def fit_lesions(rows: Sequence[Row], suffix: str, coverage: float) -> dict[str, dict[str, Any]]:
    """Radii of the volume and of the side of one class; a side is asked of cases that are marked and predicted alone.

    `usual` is the range of volumes (ml) that the same share of the cases has: an interval that holds it says nothing.
    """
    volumes = [row[f"volume_ml{suffix}"] for row in rows]
    scores = [volume_score(row[f"volume_ml{suffix}"], row[f"predicted_ml{suffix}"]) for row in rows]
    pairs = [(row[f"asymmetry_index{suffix}"], row[f"predicted_asymmetry_index{suffix}"]) for row in rows]
    apart = [abs(true - predicted) for true, predicted in pairs]
    usual = np.quantile(volumes, [(1 - coverage) / 2, (1 + coverage) / 2]).tolist()
    return {
        "volume": {**fitted(largest(rows, scores), coverage), "usual": usual},
        "side": fitted(largest(rows, apart), coverage),
    }


class Conformal:
    """What can be said of a case with a stated coverage, as further columns of its row.

    Args:
        path: JSON of `sa-swin weights calibrate`; empty or None says nothing.
        digest: gives the SHA-256 of the weights in use, or a list; figures of other weights are not used, with a
            warning.
        settings: of the run; figures that were made with other ones of `HOW` are not used either.

    Raises:
        UserError: not such a file.
    """

    def __init__(
        self, path: str | Path | None, digest: Callable[[], str | list[str]], settings: Mapping[str, Any] | None = None
    ) -> None:
        self.figures = read_figures(Path(path)) if path else {}
        if not path:
            return
        other = "" if set(self.figures["weights_sha256"]) == set(as_list(digest())) else "weights"
        if other := other or differing(self.figures["settings"], settings or {}):
            logger.warning("%s is of other %s than those in use: no intervals are given", path, other)
            self.figures = {}

    def __call__(self, row: Row, names: Sequence[str] | None = None) -> Row:
        """Columns of a row of `classification_row` or `segmented_row`; those that cannot be told of stay empty.

        Args:
            row: with `plane_reason` where the plane cannot be trusted.
            names: of the classes.
        """
        if not self.figures:
            return {}
        columns: Row = {}
        for index, found in self.figures.get("lesions", {}).items():
            columns |= lesion_columns(row, f"_class{index}", found)
        if "classes" in self.figures:
            columns |= class_columns(row, self.figures["classes"], names)
        if row.get("plane_reason"):  # the validation had no such heads
            columns = {name: UNTRUSTED_PLANE if name.startswith("cannot_tell") else None for name in columns}
        return columns | {"coverage": self.figures["coverage"]}


def differing(figures: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The settings that figures and a run have both, and not alike, as text."""
    names = [name for name in figures if name in settings and not same(figures[name], settings[name])]
    return "settings (" + ", ".join(f"--{n} {figures[n]}, here {settings[n]}" for n in names) + ")" if names else ""


def lesion_columns(row: Row, suffix: str, found: Mapping[str, Any]) -> Row:
    """`volume_low` and `volume_high` (ml), `side_set`, and why something of this cannot be told."""
    low, high = volume_interval(row[f"volume_ml{suffix}"], reach_of(found["volume"]))
    index, reach = row[f"asymmetry_index{suffix}"], reach_of(found["side"])
    sides = sides_within(index - reach, index + reach)
    usual = found["volume"]["usual"]
    why = {
        too_few("volume", found["volume"]): math.isinf(high),
        "volume: the interval holds what the validation cases have": low <= usual[0] and usual[1] <= high < math.inf,
        too_few("side", found["side"]): math.isinf(reach),
        "side: nothing is predicted": math.isnan(index),
        "side: it may be either": {"left", "right"} <= set(sides) and math.isfinite(reach),
    }
    return {
        f"volume_low{suffix}": low if math.isfinite(high) else None,
        f"volume_high{suffix}": high if math.isfinite(high) else None,
        f"side_set{suffix}": " or ".join(sides),
        f"cannot_tell{suffix}": told(why),
    }


def class_columns(row: Row, found: Sequence[Mapping[str, Any]], names: Sequence[str] | None) -> Row:
    """`class_set`, by name where there are names, and why the class cannot be told."""
    chosen = class_set([row[f"probability_{index}"] for index in range(len(found))], [reach_of(one) for one in found])
    why = {
        "no class is as likely as in the validation cases": not chosen,
        "it may be any class": len(chosen) == len(found),
        **{too_few(f"class {index}", one): one["radius"] is None for index, one in enumerate(found)},
    }
    return {
        "class_set": " or ".join(names[index] if names else str(index) for index in chosen),
        "cannot_tell": told(why),
    }


def told(why: Mapping[str, bool]) -> str:
    """The reasons that hold, as one text."""
    return "; ".join(reason for reason, holds in why.items() if holds)


def too_few(what: str, found: Mapping[str, Any]) -> str:
    """Why there is no radius."""
    return f"{what}: {found['subjects']} validation subjects are too few"


def read_figures(path: Path) -> dict[str, Any]:
    """The content of a `conformal.json`.

    Raises:
        UserError: no such file, or another one.
    """
    try:
        content = json.loads(path.read_text())
        sound = isinstance(content["weights_sha256"], list) and isinstance(content["settings"], dict)
        if sound and content["subjects"] and content.keys() & {"lesions", "classes"}:
            return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.debug("%s", error)
    raise UserError(f"{path} holds no figures of `sa-swin weights calibrate`; make it anew, or give --conformal ''")


def as_list(digest: str | list[str]) -> list[str]:
    """One digest or several as a list."""
    return [digest] if isinstance(digest, str) else list(digest)
