"""Midsagittal alignment on heads of known pose: error, failures and seconds, beside reflect-and-register halves.

    python benchmarks/alignment.py --num_cases 125 --cohort demo/cohort --output benchmarks/results

Angle (degrees) between the planes; lateral offset (mm) at the brain's centre; a failure is beyond 2 degrees or 2 mm.
SimpleITK and ANTsPy register each volume rigidly to its mirror image and take half; they run where they are installed,
on a few cases.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import torch
from posed_heads import SHARED_DATA, Case, random_cases
from torch import Tensor
from tqdm import tqdm

from custom.alignment import distrust, estimate_plane

Plane = tuple[Tensor, float]
"""Unit normal `(3,)` and offset, world mm."""


@dataclass(frozen=True)
class Result:
    """One method on one case."""

    method: str
    group: str
    case: str
    angle: float
    offset: float
    seconds: float
    note: str


def measure(method: str, find: Callable[[Tensor, Tensor], tuple[Tensor, float, str]], case: Case) -> Result:
    """Run a method and compare its plane with the truth."""
    start = time.process_time()
    normal, offset, note = find(case.image, case.affine)
    seconds = time.process_time() - start
    cross = torch.linalg.cross(normal, case.normal).norm()
    angle = math.degrees(torch.atan2(cross, normal @ case.normal).item())
    return Result(method, case.group, case.name, angle, abs((normal @ case.center).item() - offset), seconds, note)


def ours(image: Tensor, affine: Tensor) -> tuple[Tensor, float, str]:
    """`custom.alignment.estimate_plane`, with the reason where it distrusts its plane."""
    plane = estimate_plane(image, affine)
    return torch.tensor(plane.normal, dtype=torch.float64), plane.offset, distrust(plane) or ""


def half(reflection: Tensor, affine: Tensor, center: Tensor) -> tuple[Tensor, float, str]:
    """The plane of a reflection `(4, 4)` in voxels, on a grid of 1 mm along the world's axes."""
    linear = reflection[:3, :3]
    normal = torch.linalg.eigh((linear + linear.T) / 2).eigenvectors[:, 0]
    normal = normal * normal[0].sign()
    middle = (center + linear @ center + reflection[:3, 3]) / 2 + affine[:3, 3]
    return normal, (normal @ middle).item(), ""


def simpleitk_half(image: Tensor, affine: Tensor) -> tuple[Tensor, float, str]:
    """Rigid registration of a volume to its mirror image (mutual information, three resolutions), halved."""
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    moving = sitk.GetImageFromArray(image.permute(2, 1, 0).numpy())
    fixed = sitk.GetImageFromArray(image.flip(0).permute(2, 1, 0).contiguous().numpy())
    kind = sitk.CenteredTransformInitializerFilter.GEOMETRY
    start = sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler3DTransform(), kind)
    registration = sitk.ImageRegistrationMethod()
    registration.SetMetricAsMattesMutualInformation(32)
    registration.SetMetricSamplingStrategy(registration.REGULAR)
    registration.SetMetricSamplingPercentage(0.05)
    registration.SetInterpolator(sitk.sitkLinear)
    registration.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
    registration.SetOptimizerScalesFromPhysicalShift()
    registration.SetShrinkFactorsPerLevel([4, 2, 1])
    registration.SetSmoothingSigmasPerLevel([2, 1, 0])
    registration.SetInitialTransform(start, inPlace=False)
    found = registration.Execute(fixed, moving)
    origin = np.array(found.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(found.TransformPoint(tuple(axis))) - origin for axis in np.eye(3)]
    return half(_reflection(np.stack(columns, 1), origin, image.shape), affine, _middle(image))


def ants_half(image: Tensor, affine: Tensor) -> tuple[Tensor, float, str]:
    """ANTs rigid registration of a volume to its mirror image, halved."""
    import ants

    moving, fixed = ants.from_numpy(image.numpy()), ants.from_numpy(image.flip(0).numpy())
    found = ants.registration(fixed, moving, type_of_transform="Rigid")
    motion = ants.read_transform(found["fwdtransforms"][0])
    origin = np.array(motion.apply_to_point((0.0, 0.0, 0.0)))
    columns = [np.array(motion.apply_to_point(tuple(axis))) - origin for axis in np.eye(3)]
    return half(_reflection(np.stack(columns, 1), origin, image.shape), affine, _middle(image))


def _reflection(linear: np.ndarray, origin: np.ndarray, shape: Sequence[int]) -> Tensor:
    """The head's own reflection: a point's mirror image in the array, taken by the motion that registers the two."""
    motion, mirrored = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    motion[:3, :3], motion[:3, 3] = torch.from_numpy(linear), torch.from_numpy(origin)
    mirrored[0, 0], mirrored[0, 3] = -1, shape[0] - 1
    return motion @ mirrored


def _middle(image: Tensor) -> Tensor:
    return (torch.tensor(image.shape, dtype=torch.float64) - 1) / 2


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
            middle = affine[:3, :3] @ _middle(image) + affine[:3, 3]
            on_plane = middle - (normal @ middle - pose["offset_mm"]) * normal
            sign = normal[0].sign()
            yield Case(path.name, image, affine, sign * normal, on_plane, "phantom cohort")


def real_cases(poses: int, seed: int) -> Iterator[Case]:
    """Real heads in random poses; the truth is the plane found in the file's own pose: repeatability, not accuracy."""
    rng = np.random.default_rng(seed)
    for path in sorted(SHARED_DATA.glob("real/*/*.nii.gz")):
        if any(word in path.name for word in ("lesion", "label", "aseg")):
            continue
        image, affine = load(path)
        plane = estimate_plane(image, affine)
        for _ in range(poses):
            motion = torch.eye(4, dtype=torch.float64)
            turn = rng.uniform(-15, 15, 3) * math.pi / 180
            skew = torch.tensor([[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]])
            motion[:3, :3] = torch.linalg.matrix_exp(skew)
            motion[:3, 3] = torch.tensor(rng.uniform(-20, 20, 3))
            normal = motion[:3, :3] @ torch.tensor(plane.normal, dtype=torch.float64)
            center = motion[:3, :3] @ torch.tensor(plane.center, dtype=torch.float64) + motion[:3, 3]
            yield Case(
                f"{path.parent.name} {path.name}", image, motion @ affine, normal, center, "real heads, repeatability"
            )


def table(results: Sequence[Result]) -> str:
    """A Markdown table: one row per method and group."""
    lines = [
        "| method | heads | n | angle, degrees: median / p95 / max | offset, mm: same | failures | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, group in dict.fromkeys((r.method, r.group) for r in results):
        chosen = [r for r in results if (r.method, r.group) == (method, group)]
        angle, offset = np.array([r.angle for r in chosen]), np.array([r.offset for r in chosen])
        failed = np.mean((angle > 2) | (offset > 2))
        spread = [
            " / ".join(f"{q:.2f}" for q in (np.median(x), np.quantile(x, 0.95), x.max())) for x in (angle, offset)
        ]
        seconds = np.median([r.seconds for r in chosen])
        lines.append(
            f"| {method} | {group} | {len(chosen)} | {spread[0]} | {spread[1]} | {failed:.0%} | {seconds:.2f} |"
        )
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
    versions += [
        f"{n} {importlib.metadata.version(n)}"
        for n in ("SimpleITK", "antspyx")
        if importlib.util.find_spec(_MODULES[n])
    ]
    commit += " with uncommitted changes" if changed else ""
    return f"{datetime.date.today()}, {cpu}, one thread, CPU seconds; {', '.join(versions)}; commit {commit}"


_MODULES = {"SimpleITK": "SimpleITK", "antspyx": "ants"}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main(
    num_cases: int = 125,
    num_references: int = 10,
    poses: int = 4,
    cohort: str | None = None,
    output: str = "benchmarks/results",
    seed: int = 0,
) -> None:
    """Measure the alignment and write a table and every case's result.

    Args:
        num_cases: synthetic heads of known pose.
        num_references: how many of them SimpleITK and ANTsPy get as well, each where it is installed.
        poses: of every real case of SA_SWIN_SHARED_DATA.
        cohort: folder of a `custom.phantom` cohort.
        output: folder of `alignment_<date>.md` and `.csv`.
        seed: of every random draw.
    """
    torch.set_num_threads(1)
    references = {"SimpleITK": simpleitk_half, "ANTsPy": ants_half}
    references = {n: find for n, find in references.items() if importlib.util.find_spec({"ANTsPy": "ants"}.get(n, n))}
    results = []
    for index, case in enumerate(tqdm(random_cases(num_cases, seed), "heads of known pose", num_cases, disable=None)):
        results.append(measure("sa-swin", ours, case))
        if index < num_references:
            results += [measure(f"{name} half", find, case) for name, find in references.items()]
    others = [*(cohort_cases(Path(cohort)) if cohort else []), *real_cases(poses, seed)]
    results += [measure("sa-swin", ours, case) for case in tqdm(others, "phantom and real heads", disable=None)]
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"alignment_{datetime.date.today()}.md"
    results.sort(key=lambda result: result.method != "sa-swin")
    path.write_text(f"# Midsagittal alignment\n\n{circumstances()}\n\n{table(results)}\n")
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(results[0])))
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)
    print(path.read_text(), file=sys.stdout)


if __name__ == "__main__":
    fire.Fire(main)
