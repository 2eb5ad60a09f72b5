"""The asymmetry map, with no network and no training, on real gliomas and on healthy heads of another site.

    python benchmarks/asymmetry.py maps --flair LGG_FLAIR --t1 LGG_T1w --healthy IXI --other OASIS
    python benchmarks/asymmetry.py retest --healthy IXI --twice OASIS      (whose entries name the `person`)

Each a folder that `prepare` wrote at 3 mm, 64 x 80 x 64 voxels. The method was developed on every other patient; the
rest, measured by a norm of those, is the figure that counts.
"""

import datetime
import json
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from custom.evaluation.metrics import auc
from custom.evaluation.probe import icc
from custom.symmetry import mirror
from custom.transforms.asymmetry_map import (
    AsymmetryMap,
    asymmetry_map,
    head_mask,
    offsets,
    smooth,
    strangeness,
    tolerant_difference,
)
from custom.transforms.intensity import standardize_mr
from custom.volumes.loading import load_volume
from sa_swin.asymmetry.norm import Norm, make_norm

SPACING = (3.0, 3.0, 3.0)
PLAIN_MM = 3.0
"""Standard deviation of the Gaussian filter on plain differences."""


@dataclass(frozen=True)
class Head:
    """A head's maps, `(X, Y, Z)`; `plain` are differences by tolerance in mm; `lesion` is empty in the healthy."""

    name: str
    found: AsymmetryMap
    plain: Mapping[float, Tensor]
    head: Tensor
    lesion: Tensor
    seconds: float


def read_head(folder: Path, case: Mapping[str, Any], tolerances: Sequence[float] = ()) -> Head:
    """Map one prepared head; seconds are of the CPU, for the map alone."""
    image = standardize_mr(load_volume(folder / case["image"]).as_tensor())
    begun = time.process_time()
    found = asymmetry_map(image[None], SPACING)
    seconds = time.process_time() - begun
    plain = {}
    for tolerance in tolerances:
        difference = tolerant_difference(image[None], mirror(image)[None], offsets(tolerance, SPACING))
        plain[tolerance] = smooth(difference, found.inside, PLAIN_MM, SPACING)[0, 0]
    lesion = load_volume(folder / case["label"]).as_tensor()[0] > 0 if "label" in case else torch.zeros(image.shape[1:])
    body = torch.from_numpy(head_mask(image[0].numpy(), SPACING))
    return Head(case["subject"], found, plain, body, lesion.bool(), seconds)


def read_cohort(folder: str, tolerances: Sequence[float] = ()) -> list[Head]:
    """All heads of a prepared cohort, each once; patients whose mask is empty are left out."""
    root = Path(folder)
    lists = [root / "datalists" / name for name in ("segment.json", "pretrain.json")]  # with masks, where there are any
    content = json.loads(next(path for path in lists if path.exists()).read_text())
    cases = [case for section in ("training", "validation", "testing") for case in content.get(section, [])]
    heads = [read_head(root, case, tolerances) for case in tqdm(cases, root.name, disable=None)]
    return [h for h, case in zip(heads, cases, strict=True) if "label" not in case or h.lesion.any()]


def figures(score: Tensor, strange: Tensor, head: Head) -> dict[str, float]:
    """AUC of the lesion's voxels in the volume and in the head; whether the peak is in the lesion or its mirror.

    What lies outside the brain's mask scores least, of a lesion, too. The side is nan where the peak is elsewhere.

    Args:
        score: `(X, Y, Z)`.
        strange: `(X, Y, Z)`, above 0 where a place is the abnormal one.
        head: whose lesion it is.
    """
    inside, lesion = head.found.inside[0, 0], head.lesion
    score = torch.where(inside, score, score[inside].min() - 1)
    areas = {"volume": torch.ones_like(lesion), "head": head.head | lesion}
    row = {name: auc(lesion[area].numpy(), score[area].numpy()) for name, area in areas.items()}
    peak = int(score.argmax())
    own, other = bool(lesion.flatten()[peak]), bool(mirror(lesion).flatten()[peak])
    told = (own if strange.flatten()[peak] > 0 else other) if own or other else float("nan")
    return row | {"peak": float(own or other), "side": float(told)}


def patients(heads: Sequence[Head], norms: Mapping[str, Norm]) -> dict[str, dict[str, dict[str, float]]]:
    """Figures of each score, means over the patients that the method was developed on, over the others, over all.

    Args:
        heads: of the patients.
        norms: further norms by name; one of each half of the patients is made for the other half.
    """
    halves = [make_norm([h.found for h in heads[half::2]], {"spacing": SPACING}) for half in (0, 1)]
    rows: dict[str, list[dict[str, float]]] = {}
    for i, head in enumerate(tqdm(heads, "figures", disable=None)):
        found = head.found
        alone = strangeness(found.level, found.inside, SPACING)[0, 0]
        scores = {f"most alike within {mm:g} mm" if mm else "same place": plain for mm, plain in head.plain.items()}
        scores |= {"map": found.difference[0, 0]}
        for name, score in scores.items():
            rows.setdefault(name, []).append(figures(score, alone, head))
        for name, norm in {"other patients": halves[1 - i % 2], **norms}.items():
            row = figures(norm.z_map(found)[0, 0], norm.strangeness(found)[0, 0], head)
            rows.setdefault(f"map, norm of {name}", []).append(row)
    parts = {"developed": slice(0, None, 2), "held out": slice(1, None, 2), "all": slice(None)}
    return {name: {part: means(found[where]) for part, where in parts.items()} for name, found in rows.items()}


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure, and the number of patients."""
    return {"n": len(rows)} | {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}


def alarms(heads: Sequence[Head], norm: Norm) -> dict[str, float]:
    """How many heads have a peak above the norm's threshold."""
    peaks = [float(norm.z_map(head.found).max()) for head in heads]
    return {"n": len(peaks), "alarms": sum(p > norm.threshold for p in peaks), "median peak": float(np.median(peaks))}


def as_markdown(content: Mapping[str, Any]) -> str:
    """The tables of a result."""
    lines = ["# Asymmetry maps without a network", "", content["run"], ""]
    for sequence, scores in content["gliomas"].items():
        lines += [f"Gliomas on {sequence}; AUC of voxels, mean over patients; shares of patients:", ""]
        lines += ["| score | patients | n | AUC, volume | AUC, head | peak in lesion or mirror | and its side told |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for name, parts in scores.items():
            for part, row in parts.items():
                values = " | ".join(f"{row[key]:.3f}" for key in ("volume", "head", "peak", "side"))
                lines.append(f"| {name} | {part} | {row['n']} | {values} |")
        lines.append("")
    lines += [f"Threshold of the healthy heads: z = {content['threshold']:.2f}.", "", "| heads | n | alarms |"]
    lines += ["|---|---|---|", *(f"| {k} | {v['n']} | {v['alarms']} |" for k, v in content["alarms"].items()), ""]
    return "\n".join(lines)


def run_of() -> str:
    """Date, machine, versions and commit of a run."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    return (
        f"{datetime.date.today()}, {platform.machine()}, one thread, torch {torch.__version__}, commit {commit.strip()}"
    )


def result(flair: Sequence[Head], t1: Sequence[Head], healthy: Sequence[Head], other: Sequence[Head]) -> dict[str, Any]:
    """All figures."""
    norm = make_norm([head.found for head in healthy], {"spacing": SPACING})
    seconds = np.median([head.seconds for head in (*flair, *t1)])
    return {
        "run": f"{run_of()}; {seconds:.2f} CPU s for a map",
        "gliomas": {"FLAIR": patients(flair, {}), "T1": patients(t1, {"healthy heads": norm})},
        "threshold": norm.threshold,
        "alarms": {
            "healthy, another site": alarms(other, norm),
            "the norm's own, held in": alarms(healthy, norm),
            "gliomas, T1": alarms(t1, norm),
        },
    }


def main(flair: str, t1: str, healthy: str, other: str, output: str = "benchmarks/results") -> None:
    """Map the cohorts and write asymmetry_<date>.json and .md.

    Args:
        flair: prepared cohort of gliomas with masks.
        t1: the same patients' T1.
        healthy: healthy heads, T1, of which the norm is made.
        other: healthy heads of another site, T1.
        output: folder of the results.
    """
    torch.set_num_threads(1)
    gliomas = [read_cohort(folder, (0.0, 3.0, 6.0)) for folder in (flair, t1)]
    content = result(*gliomas, read_cohort(healthy), read_cohort(other))
    path = Path(output) / f"asymmetry_{datetime.date.today()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    path.with_suffix(".md").write_text(as_markdown(content))


def persons_of(folder: str) -> dict[str, str]:
    """Subject to person, of a prepared cohort."""
    content = json.loads((Path(folder) / "datalists" / "pretrain.json").read_text())
    entries = [entry for section in content.values() if isinstance(section, list) for entry in section]
    return {entry["subject"]: entry["person"] for entry in entries if isinstance(entry, dict) and "person" in entry}


def repeated(heads: Sequence[Head], persons: dict[str, str], maps: dict[str, np.ndarray]) -> dict[str, Any]:
    """Figures of the persons with two scans, beside those of all pairs of different persons."""
    scans = defaultdict(list)
    for head in heads:
        scans[persons[head.name]].append(head.name)
    pairs = [tuple(names) for names in scans.values() if len(names) == 2]
    others = [pair for pair in combinations(maps, 2) if persons[pair[0]] != persons[pair[1]]]
    out: dict[str, Any] = {"persons": len(pairs)}
    for name, figure in {"peak": np.max, "mean": np.mean}.items():
        one, other = (np.array([float(figure(maps[pair[i]])) for pair in pairs]) for i in range(2))
        out[f"icc_{name}"] = float(icc(one, other))
        out[name] = {"first": one.round(3).tolist(), "second": other.round(3).tolist()}
    same, different = ([correlation(maps[a], maps[b]) for a, b in found] for found in (pairs, others))
    out["map_correlation"] = {"same person": same, "different persons, median": float(np.median(different)),
                              "different persons, highest": float(np.max(different))}  # fmt: skip
    return out


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson correlation of two maps where both have a value."""
    both = (one > 0) & (other > 0)
    return float(np.corrcoef(one[both], other[both])[0, 1])


def retest(healthy: str, twice: str, output: str = "benchmarks/results") -> None:
    """How well maps of persons scanned twice repeat: write retest_<date>.json.

    Args:
        healthy: healthy heads, T1, of which the norm is made.
        twice: healthy heads of another site, T1, some of them of one person.
        output: folder of the result.
    """
    torch.set_num_threads(1)
    norm = make_norm([head.found for head in read_cohort(healthy)], {"spacing": SPACING})
    heads = read_cohort(twice)
    maps = {head.name: norm.z_map(head.found).clamp_min(0).numpy()[0] for head in heads}
    content = {"run": run_of(), "scans": len(heads), **repeated(heads, persons_of(twice), maps)}
    path = Path(output) / f"retest_{datetime.date.today()}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    fire.Fire({"maps": main, "retest": retest})
