"""Which planes are refused: calibrated on real heads, against planes that are known to be wrong.

`SA_SWIN_SHARED_DATA=... python benchmarks/refusals.py figures` measures the quality of every plane once, and goes on
where it stopped; `python benchmarks/refusals.py table` says what `custom.alignment.plane.distrust` makes of them.

Good: whole heads as they are stored, each channel by itself and, where there are two, all together. Where regions of
both sides are labelled, the plane that fits their middles best is the reference; else two channels are each other's.
Bad: the nose or the crown to one side in the header, one hemisphere, no head at all. A plane that is moved by 4 degrees
and 4 mm from a good one shows how far the figures see.
"""

import csv
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import torch
from hostile_heads import NO_HEADS, not_a_head
from posed_heads import SHARED_DATA
from torch import Tensor

from custom.alignment.head import NoHeadError, head_volume
from custom.alignment.plane import MidsagittalPlane, distrust, estimate_plane, evidence
from custom.alignment.search import frame, inner_similarity, levels, moved, similarity_and_overlap

RESULTS = Path(__file__).parent / "results"
REGIONS = {"ixi": "dlmuse", "whitematter": "dlmuse", "oasis": "neuromorphometrics"}
TURNS = {"nose to one side": ((0, 1), (-1, 1)), "crown to one side": ((0, 2), (-1, 1))}
GOOD, NONE = "as it is", ", none found"
EVERY = 5
"""Of the heads, each fifth is spoilt, too."""
NUM_NO_HEADS = 15


@dataclass(frozen=True)
class Head:
    """A scan `(C, X, Y, Z)`: its name and group, and the plane `(normal, offset)` that its labelled regions fit."""

    group: str
    name: str
    image: Tensor
    affine: Tensor
    reference: tuple[Tensor, float] | None = None


@dataclass(frozen=True)
class Figures:
    """One plane's quality, and how far it is from the reference (degrees, mm at the plane's centre; NaN: unknown)."""

    group: str
    name: str
    kind: str
    angle: float = math.nan
    distance: float = math.nan
    tilt: float = math.nan
    similarity: float = math.nan
    overlap: float = math.nan
    margin: float = math.nan
    angle_error: float = math.nan
    offset_error: float = math.nan
    inner_similarity: float = math.nan


def loaded(*paths: Path) -> tuple[Tensor, Tensor]:
    """Files of one grid as `(C, X, Y, Z)`, and the first one's affine."""
    images = [nib.load(path) for path in paths]
    arrays = [image.get_fdata(dtype=np.float32) for image in images]
    return torch.from_numpy(np.stack(arrays)), torch.from_numpy(images[0].affine)


def fitted_plane(path: Path, pairs: Sequence[Sequence[int]]) -> tuple[Tensor, float]:
    """The plane halfway between the middles of paired regions: least squares over normal and offset."""
    labels = nib.load(path)
    values = np.asanyarray(labels.dataobj).astype(int)
    index = np.argwhere(values > 0)
    number = values[tuple(index.T)]
    count = np.bincount(number)
    world = nib.affines.apply_affine(labels.affine, index)
    sums = np.stack([np.bincount(number, weights=world[:, axis]) for axis in range(3)], 1)
    both = [(a, b) for a, b in pairs if max(a, b) < len(count) and min(count[a], count[b]) > 0]
    right, left = (np.stack([sums[pair[side]] / count[pair[side]] for pair in both]) for side in (0, 1))
    across, middle = right - left, (right + left) / 2
    # sum of |across x n|^2 + |(middle - mean) . n|^2: parallel to what joins the sides, and through their middles
    scatter = (middle - middle.mean(0)).T @ (middle - middle.mean(0)) * 4 - across.T @ across
    normal = np.linalg.eigh(scatter)[1][:, 0]
    normal *= np.sign(normal[0])
    return torch.from_numpy(normal), float(middle.mean(0) @ normal)


def heads(first: int, step: int, done: set[tuple[str, str]]) -> Iterator[tuple[int, Head]]:
    """Every `step`-th real head from `first` on with its number, one channel at a time and all together."""
    for number, (group, name, files, reference) in enumerate(scans()):
        if number % step == first and (group, name) not in done:
            yield number, Head(group, name, *loaded(*files), reference())


def scans() -> Iterator[tuple[str, str, list[Path], Callable[[], tuple[Tensor, float] | None]]]:
    """Group, name, files and reference of every scan."""
    for path in sorted((SHARED_DATA / "real").glob("*/*.nii.gz")):
        if path.name.split(".")[0] in ("T1", "T2", "T1c", "FLAIR", "ct"):
            yield "real", f"{path.parent.name[:2]} {path.name.split('.')[0]}", [path], lambda: None
    for group in ("lgg", "whitematter", "oasis", "ixi"):
        root = SHARED_DATA / "cohorts" / group
        lateral = root / "lateral_regions.json"
        lateral = lateral if lateral.is_file() else SHARED_DATA / "cohorts" / "ixi" / lateral.name
        pairs = json.loads(lateral.read_text())["right_left"]
        for number, folder in enumerate(sorted(root.glob("sub-*"))):
            files = sorted((folder / "anat").glob("*.nii.gz"))
            labels = sorted((root / "derivatives" / REGIONS.get(group, "-") / folder.name).rglob("*dseg.nii.gz"))
            reference = partial(fitted_plane, labels[0], pairs) if labels else lambda: None
            for part in [[scan] for scan in files] + ([files] if len(files) > 1 else []):
                kinds = "+".join(file.name.split(".")[0].split("_")[-1] for file in part)
                yield group, f"{number} {kinds}", part, reference


def figures(head: Head, kind: str, plane: MidsagittalPlane) -> Figures:
    """A plane's quality, and its distance from the head's reference."""
    normal = torch.tensor(plane.normal, dtype=torch.float64)
    angle = distance = math.nan
    if head.reference is not None:
        axis, offset = head.reference
        angle = math.degrees(math.acos(min(1.0, abs(float(axis @ normal)))))
        distance = abs(float(axis @ torch.tensor(plane.center, dtype=torch.float64)) - offset)
    tilt = math.degrees(math.acos(min(1.0, plane.normal[0])))
    own = {f.name: getattr(plane, f.name) for f in fields(Figures) if hasattr(plane, f.name)}
    return Figures(head.group, head.name, kind, angle, distance, tilt, **own)


def measured(head: Head, kind: str) -> tuple[Figures, MidsagittalPlane | None]:
    """The plane that is found in a head and its quality, or that none is."""
    try:
        plane = estimate_plane(head.image, head.affine)
    except NoHeadError:
        return Figures(head.group, head.name, kind + NONE), None
    return figures(head, kind, plane), plane


def moved_plane(head: Head, plane: MidsagittalPlane, rng: np.random.Generator) -> Figures:
    """The figures of a plane 4 degrees and 4 mm beside the one that was found; margin and errors stay its own."""
    level = levels(head_volume(head.image, head.affine))
    turn = rng.uniform(0, 2 * math.pi)
    step = torch.tensor([[math.cos(turn), math.sin(turn), 0]]) * math.radians(4)
    step[0, 2] = rng.choice([-4.0, 4.0])
    normal, point = moved(torch.tensor([plane.normal]), torch.tensor([plane.center]), step)
    similarity, overlap = similarity_and_overlap(level[2], normal, point)
    changed = {"similarity": similarity.item(), "overlap": overlap.item()}
    changed["inner_similarity"] = inner_similarity(level[4], normal, point).item()
    beside = replace(plane, normal=tuple(normal[0].tolist()), center=tuple(point[0].tolist()), **changed)
    return figures(head, "4 degrees and 4 mm beside", beside)


def spoilt(head: Head, plane: MidsagittalPlane, rng: np.random.Generator) -> Iterator[Figures]:
    """A head with the wrong axes in its header, cut at its plane, and with its plane beside the right one."""
    for kind, ((a, b), signs) in TURNS.items():
        turn = torch.eye(4, dtype=torch.float64)
        turn[a, a] = turn[b, b] = 0
        turn[a, b] = float(rng.choice(signs))
        turn[b, a] = -turn[a, b]
        yield measured(replace(head, affine=turn @ head.affine, reference=None), kind)[0]
    index = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in head.image.shape[1:]], indexing="ij")).double()
    world = torch.einsum("ij,jxyz->ixyz", head.affine[:3, :3], index) + head.affine[:3, 3, None, None, None]
    side = torch.einsum("i,ixyz->xyz", frame(torch.tensor(plane.normal).double())[:, 0], world) - plane.offset
    gone = rng.choice([-1, 1]) * side > rng.uniform(0, 10)
    lowest = head.image.amin((1, 2, 3), keepdim=True)
    yield measured(replace(head, image=torch.where(gone, lowest, head.image), reference=None), "one hemisphere")[0]
    yield moved_plane(head, plane, rng)


def write_figures(path: str | Path = RESULTS / "refusals_figures.csv", part: str = "0/1") -> None:
    """Measure every plane that is not in the table yet.

    Args:
        path: the table; each row is written when it is there.
        part: which heads, "1/4": every fourth from the second on, for several processes with a table each.
    """
    path = Path(path)
    first, step = map(int, part.split("/"))
    done = {(row["group"], row["name"]) for row in read(path)} if path.is_file() else set()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Figures)])
        if not done:
            writer.writeheader()
        for number, rows in enumerate(all_figures(done, first, step)):
            writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in asdict(r).items()} for r in rows)
            file.flush()
            sys.stderr.write(f"\r{number + 1}")


def all_figures(done: set[tuple[str, str]], first: int, step: int) -> Iterator[list[Figures]]:
    """The planes of each head that is not done yet, and of what is no head."""
    for number, head in heads(first, step, done):
        row, plane = measured(head, GOOD)
        spoil = plane is not None and number % EVERY == 0
        yield [row, *(spoilt(head, plane, np.random.default_rng(number)) if spoil else [])]
    for kind in NO_HEADS:
        for number in range(first, NUM_NO_HEADS, step):
            if ("no head", f"{kind} {number}") not in done:
                case = not_a_head(np.random.default_rng(number), kind)
                head = Head("no head", f"{kind} {number}", case.image[None], case.affine)
                yield [measured(head, f"no head: {kind}")[0]]


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def plane_of(row: dict[str, str]) -> MidsagittalPlane:
    """A plane of these figures, turned by its tilt about the vertical axis."""
    tilt = math.radians(float(row["tilt"]))
    names = [f.name for f in fields(MidsagittalPlane)][3:]
    return MidsagittalPlane(
        (math.cos(tilt), math.sin(tilt), 0.0), 0.0, (0.0, 0.0, 0.0), **{name: float(row[name]) for name in names}
    )


def write_table(
    path: str | Path = RESULTS / "refusals_figures.csv", output: str | Path = RESULTS / "refusals.md"
) -> None:
    """Say how many planes of each kind are refused, and what the good ones that come closest to it have.

    Args:
        path: of the figures.
        output: Markdown.
    """
    rows = read(Path(path))
    kinds = list(dict.fromkeys(row["kind"].removesuffix(NONE) for row in rows))
    lines = ["| planes | n | no head found | refused | taken |", "|---|---|---|---|---|"]
    for kind in kinds:
        own = [plane_of(row) for row in rows if row["kind"] == kind]
        none = sum(row["kind"] == kind + NONE for row in rows)
        refused = sum(distrust(plane) is not None for plane in own)
        lines.append(f"| {kind} | {len(own) + none} | {none} | {refused} | {len(own) - refused} |")
    good = sorted(((evidence(plane_of(row)), row) for row in rows if row["kind"] == GOOD), key=lambda pair: pair[0])
    lines += ["", "Good planes with the least evidence:", "", "| head | evidence | similarity | inside | margin |"]
    lines.append("|---|---|---|---|---|")
    for value, row in good[:8]:
        figures = " | ".join(f"{float(row[name]):.2f}" for name in ("similarity", "inner_similarity", "margin"))
        lines.append(f"| {row['group']} {row['name']} | {value:.2f} | {figures} |")
    Path(output).write_text("# Refused planes\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    fire.Fire({"figures": write_figures, "table": write_table})
