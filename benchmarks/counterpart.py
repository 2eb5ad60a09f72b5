"""The homologous counterpart on real heads: regions against their partners, lesions kept, folds, round trip, seconds.

    python benchmarks/counterpart.py --num_heads 129 --num_references 12 --output benchmarks/results

Heads and regions are the cohort `ixi`, the lesions masks of real strokes, painted on them on one side. `picsl-greedy`,
which registers the mirror image to the image, runs beside where it is installed (`pip install picsl-greedy`).
"""

import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from alignment import circumstances
from posed_heads import SHARED_DATA
from torch import Tensor
from tqdm import tqdm

from custom.alignment.fields import displaced_mirror, jacobian_determinants, round_trip
from custom.alignment.grid import aligned_grid, to_grid
from custom.alignment.homologous import homologous_field
from custom.symmetry import mirror
from custom.volumes.loading import load_volume

SPACING, SIZE = (2.0, 2.0, 2.0), (96, 112, 96)
FACTORS = (0.5, 0.75, 1.35)
"""What a lesion's intensities are multiplied by: an old infarct on T1, a mild one, something bright."""
SMALLEST_ML, LARGEST_ML = 3.0, 40.0
ROW = ("method", "head", "dice", "seconds", "folded", "round_trip_mm", "round_trip_max_mm", "largest_mm", "kept",
       "outside", "lesion_ml", "factor")  # fmt: skip

Field = Callable[[Tensor], Tensor]
"""From an aligned volume `(1, 1, X, Y, Z)` to the displacement of its mirror image, `(1, 3, X, Y, Z)` mm."""


@dataclass(frozen=True)
class Head:
    """An aligned head `(1, 1, X, Y, Z)` and its regions `(X, Y, Z)`."""

    name: str
    image: Tensor
    regions: Tensor


@dataclass(frozen=True)
class Result:
    """One method on one head; `kept` and `outside` are shares of the rigid mirror's asymmetry."""

    method: str
    head: str
    dice: float
    seconds: float
    folded: int
    round_trip_mm: float
    round_trip_max_mm: float
    largest_mm: float
    kept: float
    outside: float
    lesion_ml: float
    factor: float


def heads(folder: Path, count: int) -> Iterator[Head]:
    """The first heads of the cohort, spread over it, aligned at 2 mm."""
    files = sorted(folder.glob("sub-*/anat/*_T1w.nii.gz"))
    for index in np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int):
        name = files[index].name.split("_")[0]
        volume = load_volume(str(files[index])).float()
        regions = load_volume(str(folder / f"derivatives/dlmuse/{name}/anat/{name}_desc-muse_dseg.nii.gz")).float()
        affine = aligned_grid(volume, SPACING, SIZE).affine
        aligned = [
            to_grid(v, affine, SIZE, mode).as_tensor() for v, mode in ((volume, "bilinear"), (regions, "nearest"))
        ]
        yield Head(name, aligned[0][None], aligned[1][0].long())


def mirrored_dice(regions: Tensor, field: Tensor, pairs: Sequence[Sequence[int]]) -> float:
    """Dice of each region with its partner brought over by the field, the mean over regions."""
    partner = torch.arange(int(regions.max()) + 1 + max(map(max, pairs)))
    for right, left in pairs:
        partner[right], partner[left] = left, right
    other = partner[displaced_mirror(regions[None, None].float(), field, SPACING, "nearest")[0, 0].long()]
    sizes = [torch.bincount(x.flatten(), minlength=len(partner)).double() for x in (regions, other)]
    both = torch.bincount(regions[regions == other], minlength=len(partner)).double()
    dice = 2 * both / (sizes[0] + sizes[1]).clamp_min(1)
    return float(dice[torch.tensor(pairs).flatten()].mean())


def lesion(head: Head, files: Sequence[Path], rng: np.random.Generator) -> Tensor:
    """A one-sided stroke mask `(X, Y, Z)` of 3 to 40 ml, scaled from the standard space's box to the head's brain."""
    brain = head.regions > 0
    index = brain.nonzero()
    low, high = index.amin(0).tolist(), (index.amax(0) + 1).tolist()
    half = brain.shape[0] // 2
    while True:
        mask = nib.as_closest_canonical(nib.load(files[rng.integers(len(files))])).get_fdata(dtype=np.float32)
        box = F.interpolate(
            torch.from_numpy(mask)[None, None], [b - a for a, b in zip(low, high, strict=True)], mode="trilinear"
        )
        placed = torch.zeros(brain.shape)
        placed[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = box[0, 0]
        placed = (placed > 0.5) & brain
        ml = placed.sum().item() * np.prod(SPACING) / 1000
        left = placed[:half].sum().item() / max(1, placed.sum().item())
        if SMALLEST_ML <= ml <= LARGEST_ML and not 0.03 < left < 0.97:
            placed[half:] &= left < 0.5
            placed[:half] &= left > 0.5
            return placed


def smoothed(x: Tensor) -> Tensor:
    """A Gaussian of one voxel, `(1, 1, X, Y, Z)`."""
    kernel = torch.exp(-(torch.arange(-3.0, 4) ** 2) / 2)
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[axis + 2] = 7
        padding = [3 if axis == a else 0 for a in range(3)]
        x = F.conv3d(x, (kernel / kernel.sum()).reshape(shape), padding=padding)
    return x


def asymmetry_kept(head: Head, ill: Tensor, mask: Tensor, field: Tensor) -> tuple[float, float]:
    """Mean absolute difference to the counterpart over that to the mirror image: in the lesion, and away from it."""
    rigid, found = (smoothed(ill - other)[0, 0].abs() for other in (mirror(ill), displaced_mirror(ill, field, SPACING)))
    near = F.max_pool3d((mask | mirror(mask))[None, None].float(), 7, 1, 3)[0, 0] > 0
    away = (head.regions > 0) & ~near
    return tuple((found[part].mean() / rigid[part].mean()).item() for part in (mask, away))


def measure(method: str, find: Field, head: Head, mask: Tensor, factor: float, pairs: list[list[int]]) -> Result:
    """One method on a head as it is, for regions and seconds, and with its lesion."""
    start = time.process_time()
    field = find(head.image)
    seconds = time.process_time() - start
    soft = smoothed(mask[None, None].float())
    ill = head.image * (1 - soft + factor * soft)
    kept, outside = asymmetry_kept(head, ill, mask, find(ill))
    spacing, brain = torch.tensor(SPACING), head.regions > 0
    there_and_back = round_trip(field, spacing).norm(dim=1)[0][brain]
    return Result(
        method=method,
        head=head.name,
        dice=mirrored_dice(head.regions, field, pairs),
        seconds=seconds,
        folded=int((jacobian_determinants(field, spacing) <= 0).sum()),
        round_trip_mm=there_and_back.quantile(0.99).item(),
        round_trip_max_mm=there_and_back.max().item(),
        largest_mm=field.norm(dim=1).max().item(),
        kept=kept,
        outside=outside,
        lesion_ml=mask.sum().item() * float(np.prod(SPACING)) / 1000,
        factor=factor,
    )


def ours(image: Tensor) -> Tensor:
    """`custom.alignment.homologous`."""
    return homologous_field(image, SPACING)[0]


def rigid(image: Tensor) -> Tensor:
    """The mirror image as it is."""
    return image.new_zeros(1, 3, *image.shape[2:])


def greedy(options: str) -> Field:
    """Registration of the mirror image to the image by `picsl-greedy`."""

    def find(image: Tensor) -> Tensor:
        import SimpleITK as sitk  # noqa: N813  only where it is installed
        from picsl_greedy import Greedy3D

        volumes = [
            sitk.GetImageFromArray(x[0, 0].permute(2, 1, 0).contiguous().numpy()) for x in (image, mirror(image))
        ]
        for volume in volumes:
            volume.SetSpacing(SPACING)
        engine = Greedy3D()
        engine.execute(
            f"-i fixed moving -m NCC 2x2x2 {options} -o warp -threads 1 -V 0",
            fixed=volumes[0], moving=volumes[1], warp=None,
        )  # fmt: skip
        return torch.from_numpy(sitk.GetArrayFromImage(engine["warp"]).T.copy())[None].float()

    return find


REFERENCES = {
    "greedy 60x40x10": greedy("-n 60x40x10 -s 2vox 0.7vox"),
    "greedy 60x20x0": greedy("-n 60x20x0 -s 3vox 1vox"),
}


def table(results: Sequence[Result]) -> str:
    """A Markdown table: one row per method; means, and the range over heads in brackets."""
    lines = [
        "| method | heads | Dice of mirrored regions | CPU s | folded voxels | there and back, mm: p99 / max of a head "
        "| largest mm | signal kept in lesions | asymmetry elsewhere |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(r.method for r in results):
        rows = [r for r in results if r.method == method]
        column = {name: np.array([getattr(r, name) for r in rows]) for name in ROW[2:]}
        back = f"{column['round_trip_mm'].max():.3f} / {column['round_trip_max_mm'].max():.2f}"
        spread = {n: f"{v.mean():.3f} [{v.min():.3f}, {v.max():.3f}]" for n, v in column.items()}
        cells = [
            method, str(len(rows)), spread["dice"], f"{np.median(column['seconds']):.1f}", str(column["folded"].sum()),
            back, f"{column['largest_mm'].max():.1f}", spread["kept"], spread["outside"],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(num_heads: int = 129, num_references: int = 12, output: str = "benchmarks/results", seed: int = 0) -> None:
    """Measure the counterpart on real heads and write a table and every head's result.

    Args:
        num_heads: of the cohort `ixi`, spread over it.
        num_references: how many of them greedy gets as well, where it is installed.
        output: folder of `counterpart_<date>.md` and `.json`.
        seed: of the lesions.
    """
    torch.set_num_threads(1)
    cohort = SHARED_DATA / "cohorts" / "ixi"
    pairs = json.loads((cohort / "lateral_regions.json").read_text())["right_left"]
    masks = sorted((SHARED_DATA / "lesions").glob("*.nii.gz"))
    rng = np.random.default_rng(seed)
    references = REFERENCES if importlib.util.find_spec("picsl_greedy") else {}
    results = []
    for index, head in enumerate(tqdm(heads(cohort, num_heads), "heads", num_heads, disable=None)):
        mask, factor = lesion(head, masks, rng), FACTORS[index % len(FACTORS)]
        methods = {"mirror": rigid, "homologous": ours} | (references if index < num_references else {})
        results += [measure(name, find, head, mask, factor, pairs) for name, find in methods.items()]
        write(results, Path(output))


def write(results: Sequence[Result], folder: Path) -> None:
    """Write what is done so far."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"counterpart_{date.today()}.md"
    path.write_text(f"# The homologous counterpart\n\n{circumstances()}\n\n{table(results)}\n")
    path.with_suffix(".json").write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
