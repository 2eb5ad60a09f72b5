"""Midsagittal alignment on heads of known pose, on spoilt heads and on what is none: error, refusals and seconds.

    python benchmarks/alignment.py --num_cases 75 --cohort COHORT --workers 2 --output benchmarks/results

Angle (degrees) between the planes; lateral offset (mm) at the brain's centre (of repeatability, at the volume's).
SimpleITK and ANTsPy, which register each volume to its mirror image and take half, run beside where they are installed
(`pip install -e '.[benchmark]'`): on some of the synthetic heads, and on some real ones.
"""

import csv
import datetime
import importlib.metadata
import importlib.util
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from hostile_heads import HOSTILE, NO_TRUTH, hostile_cases
from posed_heads import SHARED_DATA, Case, random_cases
from registration_halves import METHODS, MODULES, Found, on_world_grid
from torch import Tensor
from tqdm import tqdm

from custom.alignment.head import NoHeadError
from custom.alignment.plane import distrust, estimate_plane

WORST_DEGREES, WORST_MM = 2.0, 2.0
"""Beyond these a plane is wrong."""
REFUSAL = f"""A plane is wrong beyond {WORST_DEGREES:g} degrees or {WORST_MM:g} mm; \
on what is no head, any plane is wrong. No wrong plane may be trusted:"""

REAL = {
    "real heads": ("real/*/*.nii.gz", 0),
    "gliomas": ("cohorts/lgg/sub-*/anat/*.nii.gz", 1),
    "ixi": ("cohorts/ixi/sub-*/anat/*.nii.gz", 1),
    "oasis, no skull": ("cohorts/oasis/sub-*/anat/*.nii.gz", 1),
    "white-matter lesions": ("cohorts/whitematter/sub-*/anat/*.nii.gz", 1),
}
"""Real heads among the shared data: their files, and poses of each, where that is not chosen."""
NO_IMAGE = ("lesion", "label", "aseg")
Method = Callable[[Tensor, Tensor], Found]


@dataclass(frozen=True)
class Result:
    """One method on one case; `note` says why its plane is not trusted; angle and offset are nan without a truth."""

    method: str
    group: str
    case: str
    angle: float
    offset: float
    seconds: float
    note: str

    @property
    def wrong(self) -> bool:
        """Beyond `WORST_DEGREES` or `WORST_MM`, or a plane in what is no head."""
        return not (self.angle <= WORST_DEGREES and self.offset <= WORST_MM)


def measure(method: str, find: Method, case: Case) -> Result:
    """Run a method and compare its plane with the truth."""
    start = time.process_time()
    normal, offset, note = find(case.image, case.affine)
    seconds = time.process_time() - start
    cross = torch.linalg.cross(normal, case.normal).norm()
    angle = math.degrees(torch.atan2(cross, (normal @ case.normal).abs()).item())
    error = abs((normal @ case.center).item() - offset)
    return Result(method, case.group, case.name, angle, error, seconds, note)


def ours(image: Tensor, affine: Tensor) -> Found:
    """`custom.alignment.plane.estimate_plane`, with the reason where it distrusts its plane or finds no head."""
    try:
        plane = estimate_plane(image, affine)
    except NoHeadError as error:
        return NO_TRUTH, math.nan, str(error)
    return torch.tensor(plane.normal, dtype=torch.float64), plane.offset, distrust(plane) or ""


def load(path: Path) -> tuple[Tensor, Tensor]:
    """A file's voxels `(X, Y, Z)` and affine."""
    file = nib.load(path)
    return torch.from_numpy(np.asarray(file.dataobj, dtype=np.float32)), torch.from_numpy(file.affine)


def cohort_cases(folder: Path) -> Iterator[Case]:
    """The phantom cohort with the planes it was made with."""
    for record in sorted(folder.glob("derivatives/pose/*_pose.json")):
        pose = json.loads(record.read_text())
        normal = torch.tensor(pose["normal"], dtype=torch.float64)
        for path in sorted((folder / record.name.removesuffix("_pose.json")).glob("anat/*.nii.gz")):
            image, affine = load(path)
            middle = affine[:3, :3] @ ((torch.tensor(image.shape) - 1) / 2).double() + affine[:3, 3]
            on_plane = middle - (normal @ middle - pose["offset_mm"]) * normal
            sign = normal[0].sign()
            yield Case(path.name, image, affine, sign * normal, on_plane, "phantom cohort")


def real_cases(find: Method, poses: int, seed: int, most: int | None = None) -> Iterator[Case]:
    """Real heads in random poses; the truth is the plane that the method finds in the file's own pose: repeatability.

    Args:
        find: the method.
        poses: of every single case; heads of the cohorts, which are many, have one each.
        seed: of the poses.
        most: files of each cohort, spread over it, one pose each; None takes all, and the single cases.
    """
    rng = np.random.default_rng(seed)
    for group, (pattern, own) in REAL.items():
        files = [path for path in sorted(SHARED_DATA.glob(pattern)) if not any(word in path.name for word in NO_IMAGE)]
        if most is not None:
            files = files[:: max(len(files) // most, 1)][:most] if own else []
        for path in files:
            image, affine = load(path)
            normal, offset, _ = find(image, affine)
            middle = affine[:3, :3] @ ((torch.tensor(image.shape) - 1) / 2).double() + affine[:3, 3]
            on_plane = middle - (normal @ middle - offset) * normal
            for _ in range(own or poses):
                motion = random_motion(rng)
                center = motion[:3, :3] @ on_plane + motion[:3, 3]
                name = f"{path.parent.name} {path.name}"
                yield Case(name, image, motion @ affine, motion[:3, :3] @ normal, center, f"{group}, repeatability")


def random_motion(rng: np.random.Generator) -> Tensor:
    """A rigid motion, `(4, 4)`: up to 15 degrees about each axis, and 20 mm along it."""
    motion = torch.eye(4, dtype=torch.float64)
    turn = rng.uniform(-15, 15, 3) * math.pi / 180
    skew = torch.tensor([[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]])
    motion[:3, :3] = torch.linalg.matrix_exp(skew)
    motion[:3, 3] = torch.tensor(rng.uniform(-20, 20, 3))
    return motion


def accuracy_table(results: Sequence[Result]) -> str:
    """A Markdown table: one row per method and group of heads."""
    lines = [
        "| method | heads | n | angle, degrees: median / p95 / max | offset, mm: same "
        "| wrong | refused | of these right | trusted though wrong | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method, group in dict.fromkeys((r.method, r.group) for r in results):
        chosen = [r for r in results if (r.method, r.group) == (method, group)]
        found = [r for r in chosen if not math.isnan(r.angle)]
        spread = [_spread([r.angle for r in found]), _spread([r.offset for r in found])]
        refused = [r for r in chosen if r.note]
        counts = [sum(r.wrong for r in chosen), len(refused), sum(not r.wrong for r in refused),
                  sum(r.wrong and not r.note for r in chosen)]  # fmt: skip
        seconds = np.median([r.seconds for r in chosen])
        cells = [method, group, str(len(chosen)), *spread, *map(str, counts), f"{seconds:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return " / ".join(f"{q:.2f}" for q in (np.median(values), np.quantile(values, 0.95), max(values)))


def refusal_table(results: Sequence[Result]) -> str:
    """A Markdown table: how many of each kind of spoilt head and of no head are refused, and how good the rest is."""
    lines = [
        "| volumes | n | found wrong | refused | of the trusted: worst angle, degrees | worst offset, mm | wrong |",
        "|---|---|---|---|---|---|---|",
    ]
    for group in dict.fromkeys(r.group for r in results):
        chosen = [r for r in results if r.group == group]
        trusted = [r for r in chosen if not r.note]
        worst = [f"{max(x):.2f}" if (x := [v for v in values if not math.isnan(v)]) else "" for values in
                 ([r.angle for r in trusted], [r.offset for r in trusted])]  # fmt: skip
        counts = [sum(r.wrong for r in chosen), len(chosen) - len(trusted), *worst, sum(r.wrong for r in trusted)]
        lines.append(f"| {group} | {len(chosen)} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def circumstances() -> str:
    """When, on what and with what the numbers were made."""
    cpu = next(
        (x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), platform.processor()
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "custom"], capture_output=True, text=True, check=False
    ).stdout
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "monai", "numpy")]
    versions += [f"{n} {importlib.metadata.version(n)}" for n in _DISTRIBUTIONS if _installed(_DISTRIBUTIONS[n])]
    commit += " with uncommitted changes" if changed else ""
    return f"{datetime.date.today()}, {cpu}, one thread, CPU seconds; {', '.join(versions)}; commit {commit}"


_DISTRIBUTIONS = {"SimpleITK": "SimpleITK", "antspyx": "ANTsPy"}


def _installed(method: str) -> bool:
    return importlib.util.find_spec(MODULES[method]) is not None


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def heads_of_known_pose(num_cases: int, seed: int) -> Iterator[Result]:
    """Every head with our method."""
    yield from (measure("sa-swin", ours, case) for case in random_cases(num_cases, seed))


def heads_by_registration(name: str, num_cases: int, num_real: int, seed: int) -> Iterator[Result]:
    """The first heads of known pose, and some of every cohort of real heads, with one of the other methods."""
    yield from (measure(f"{name} half", METHODS[name], case) for case in random_cases(num_cases, seed))

    def find(image: Tensor, affine: Tensor) -> Found:
        return METHODS[name](*on_world_grid(image, affine))

    yield from (measure(f"{name} half", find, case) for case in real_cases(find, 1, seed, num_real))


def other_heads(cohort: str | None, poses: int, seed: int) -> Iterator[Result]:
    """The phantom cohort and real heads."""
    cases = [cohort_cases(Path(cohort))] if cohort else []
    for case in (case for source in (*cases, real_cases(ours, poses, seed)) for case in source):
        yield measure("sa-swin", ours, case)


def hostile_heads(num_cases: int, seed: int) -> Iterator[Result]:
    """What should be refused where it is not right."""
    yield from (measure("sa-swin", ours, case) for case in hostile_cases(num_cases, seed))


def collected(source: Callable[..., Iterable[Result]], *arguments: Any) -> list[Result]:
    """All results of one source, in a process of its own."""
    torch.set_num_threads(1)
    return list(tqdm(source(*arguments), source.__name__, unit="result", disable=None))


def main(
    num_cases: int = 75,
    num_references: int = 11,
    num_real_references: int = 2,
    num_hostile: int = 20,
    poses: int = 4,
    cohort: str | None = None,
    workers: int = 1,
    output: str = "benchmarks/results",
    seed: int = 0,
) -> None:
    """Measure the alignment and write tables and every case's result.

    Args:
        num_cases: synthetic heads of known pose.
        num_references: how many of them SimpleITK and ANTsPy get as well, each where it is installed.
        num_real_references: how many heads of every cohort of SA_SWIN_SHARED_DATA they get.
        num_hostile: volumes of each kind that is spoilt or no head.
        poses: of every real case of SA_SWIN_SHARED_DATA.
        cohort: folder of a `sa-swin phantom` cohort.
        workers: processes.
        output: folder of `alignment_<date>.md` and `.csv`.
        seed: of every random draw.
    """
    jobs = [
        (heads_by_registration, name, num_references, num_real_references, seed)
        for name in reversed(METHODS)
        if _installed(name)
    ]
    jobs += [
        (hostile_heads, num_hostile, seed),
        (heads_of_known_pose, num_cases, seed),
        (other_heads, cohort, poses, seed),
    ]
    with ProcessPoolExecutor(workers) as pool:
        futures = [pool.submit(collected, *job) for job in jobs]
        results: list[Result] = []
        for future in as_completed(futures):
            results += future.result()
            path = write_report(results, Path(output))
    print(path.read_text(), file=sys.stdout)


def write_report(results: Sequence[Result], folder: Path) -> Path:
    """Write the tables and every case's result, of what is done so far; returns the tables' file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"alignment_{datetime.date.today()}.md"
    ranked = sorted(results, key=lambda result: result.method != "sa-swin")
    hostile = [result for result in ranked if result.group in HOSTILE]
    straight = [result for result in ranked if result.group not in HOSTILE]
    text = [circumstances(), accuracy_table(straight), REFUSAL, refusal_table(hostile)]
    path.write_text("# Midsagittal alignment\n\n" + "\n\n".join(text) + "\n")
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(ranked[0])))
        writer.writeheader()
        writer.writerows(asdict(result) for result in ranked)
    return path


if __name__ == "__main__":
    fire.Fire(main)
