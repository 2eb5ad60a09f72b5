"""How well the asymmetry of persons scanned twice repeats: peak and mean of the map, and the map itself.

    python benchmarks/retest.py --healthy IXI --twice OASIS

Each a folder that `prepare` wrote at 3 mm, 64 x 80 x 64 voxels; the entries of OASIS name the `person`.
"""

import datetime
import json
import platform
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch

from benchmarks.asymmetry import SPACING, Head, read_cohort
from custom.evaluation.probe import icc
from sa_swin.asymmetry.norm import make_norm


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


def main(healthy: str, twice: str, output: str = "benchmarks/results") -> None:
    """Write retest_<date>.json.

    Args:
        healthy: healthy heads, T1, of which the norm is made.
        twice: healthy heads of another site, T1, some of them of one person.
        output: folder of the result.
    """
    torch.set_num_threads(1)
    norm = make_norm([head.found for head in read_cohort(healthy)], {"spacing": SPACING})
    heads = read_cohort(twice)
    maps = {head.name: norm.z_map(head.found).clamp_min(0).numpy()[0] for head in heads}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    about = f"{datetime.date.today()}, {platform.machine()}, torch {torch.__version__}, commit {commit.strip()}"
    content = {"run": about, "scans": len(heads), **repeated(heads, persons_of(twice), maps)}
    path = Path(output) / f"retest_{datetime.date.today()}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
