"""The README's figure: one synthetic head on its way through the method, `python examples/figure.py`.

The head is one of `sa-swin phantom`'s. Plane, aligned volume, mirrored counterpart and holes are what this project's
code makes of it; nothing is trained, and the outlined lesion is the mask that the head was made with.
"""

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import fire
import matplotlib
import nibabel as nib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from PIL import Image

from custom.alignment.plane import MidsagittalPlane, estimate_plane
from custom.symmetry import split_pair
from custom.transforms import InputContract
from custom.transforms.views import hole_masks, random_cuboids
from sa_swin.phantom.subject import Config, make_subject

HEAD = Config(
    subjects=4,
    seed=2,
    modality=("FLAIR",),
    spacing=1.5,
    patients=1.0,
    findings=("tumour",),
    tilt=16,
    lesion_ml=(40, 60),
)
SPACING, SIZE = 1.3, (160, 192, 160)
"""mm and voxels of the aligned volume."""
INK, FAINT, PLANE, OWN, MIRRORED, LESION = "#1f2937", "#6b7280", "#f59e0b", "#0f766e", "#6d28d9", "#ef4444"
TILE = (1.72, 2.0)
"""Width and height of a picture, inches."""


@dataclass(frozen=True)
class Stages:
    """What the method makes of a head: arrays in RAS, `(X, Y, Z)` each.

    Args:
        head: as it lies in the scanner.
        affine: of the head, voxel to world, mm.
        lesion: its mask.
        plane: the midsagittal plane that was found.
        image: the head, aligned.
        mirrored: its mirrored counterpart.
        aligned_lesion: the mask, aligned.
        holed: the image with the holes that pretraining fills.
    """

    head: np.ndarray
    affine: np.ndarray
    lesion: np.ndarray
    plane: MidsagittalPlane
    image: np.ndarray
    mirrored: np.ndarray
    aligned_lesion: np.ndarray
    holed: np.ndarray


def stages() -> Stages:
    """Make the head and take it through the input contract, by way of files, as a training would."""
    subject = make_subject(HEAD, 1)
    head, mask = (nib.as_closest_canonical(image) for image in (subject.images["FLAIR"], subject.mask))
    with tempfile.TemporaryDirectory() as folder:
        paths = {"image": str(Path(folder) / "head.nii"), "label": str(Path(folder) / "mask.nii")}
        for path, image in zip(paths.values(), (head, mask), strict=True):
            nib.save(image, path)
        made = InputContract(label_key="label", spacing=SPACING, spatial_size=SIZE)(paths)
    image, mirrored = (half[0] for half in split_pair(made["image"].as_tensor()))
    holes = hole_masks(random_cuboids(1, SIZE, torch.Generator().manual_seed(5), count=24), SIZE)[0, 0]
    return Stages(
        head=head.get_fdata(),
        affine=head.affine,
        lesion=mask.get_fdata(),
        plane=estimate_plane(torch.from_numpy(head.get_fdata()).float(), torch.from_numpy(head.affine)),
        image=image.numpy(),
        mirrored=mirrored.numpy(),
        aligned_lesion=made["label"][0].numpy(),
        holed=torch.where(holes, image.min(), image).numpy(),
    )


def seen(volume: np.ndarray, index: int) -> np.ndarray:
    """An axial slice as radiologists look at it: the patient's right at the left, the front up."""
    return volume[::-1, ::-1, index].T


def fullest(mask: np.ndarray) -> int:
    """The axial slice with most of a mask."""
    return int(mask.sum((0, 1)).argmax())


class Canvas:
    """A drawing in inches, the origin at the lower left."""

    def __init__(self, width: float, height: float) -> None:
        self.size = (width, height)
        self.figure = Figure(figsize=self.size, facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")

    def picture(self, x: float, y: float, volume: np.ndarray, index: int, edge: str, scale: float = 1.0) -> Axes:
        """A slice at a place, framed; returns its axes, in voxels of the slice."""
        width, height = TILE[0] * scale, TILE[1] * scale
        axes = self.figure.add_axes((x / self.size[0], y / self.size[1], width / self.size[0], height / self.size[1]))
        low, high = np.percentile(volume, (1, 99.7))
        axes.imshow(seen(volume, index), cmap="gray", vmin=low, vmax=high, interpolation="bilinear", aspect="auto")
        rows, middle = volume.shape[0] * TILE[1] / TILE[0], (volume.shape[1] - 1) / 2  # as many as keep its proportions
        axes.set(xticks=[], yticks=[], facecolor="black", ylim=(middle + rows / 2, middle - rows / 2))
        for spine in axes.spines.values():
            spine.set(color=edge, linewidth=2.2)
        return axes

    def text(self, x: float, y: float, words: str, colour: str = INK, size: float = 9.5, **options: object) -> None:
        """Words at a place, centred."""
        style = {"ha": "center", "va": "center", "color": colour, "fontsize": size, "linespacing": 1.3} | options
        self.axes.text(x, y, words, **style)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], colour: str = INK, bend: float = 0.0) -> None:
        """An arrow from one place to another; `bend` is its bow, as a share of its length."""
        style = {"arrowstyle": "-|>", "mutation_scale": 13, "linewidth": 1.7, "shrinkA": 0, "shrinkB": 0}
        self.axes.add_patch(FancyArrowPatch(start, end, color=colour, connectionstyle=f"arc3,rad={bend}", **style))

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """A rounded box, filled."""
        shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", color=colour)
        self.axes.add_patch(shape)

    def encoder(self, x: float, y: float, colour: str) -> None:
        """The encoder: from many voxels to few features."""
        self.axes.add_patch(
            Polygon([(x, y - 0.62), (x, y + 0.62), (x + 1.0, y + 0.3), (x + 1.0, y - 0.3)], color=colour)
        )
        self.text(x + 0.46, y, "Swin\nencoder", "white", 9, weight="bold")


def draw_head(canvas: Canvas, made: Stages) -> None:
    """The head as it lies, with the plane that was found."""
    index = fullest(made.lesion)
    axes = canvas.picture(0.2, 1.72, made.head, index, FAINT)
    nx, ny, _ = made.head.shape
    normal = made.affine[:3, :3].T @ np.array(made.plane.normal)  # of the plane in voxels
    offset = made.plane.offset - made.affine[:3, 3] @ np.array(made.plane.normal)
    j = np.array([0, ny - 1])
    i = (offset - normal[1] * j - normal[2] * index) / normal[0]
    axes.plot(nx - 1 - i, ny - 1 - j, color=PLANE, linewidth=2)
    canvas.text(1.06, 4.02, "A head, as it lies", weight="bold")
    canvas.text(1.06, 1.42, "midsagittal plane, found", PLANE, weight="bold")
    canvas.arrow((2.02, 2.72), (2.62, 2.72))
    canvas.text(2.32, 2.94, "align", FAINT, 8.5)


def draw_pair(canvas: Canvas, made: Stages) -> None:
    """The symmetric pair: the aligned image and its mirrored counterpart, and one ROI of both."""
    index = fullest(made.aligned_lesion)
    where = np.argwhere(made.aligned_lesion[:, :, index])
    x, y = (np.array(made.image.shape[:2]) - 1) - where.mean(0)
    for volume, low, colour in ((made.image, 2.86, OWN), (made.mirrored, 0.3, MIRRORED)):
        axes = canvas.picture(2.72, low, volume, index, colour)
        axes.axvline((volume.shape[0] - 1) / 2, color=PLANE, linewidth=1.4, linestyle=(0, (4, 3)))
        axes.add_patch(Rectangle((x - 26, y - 26), 52, 52, fill=False, edgecolor=colour, linewidth=2.4))
        axes.add_patch(Rectangle((x - 26, y - 26), 52, 52, fill=False, edgecolor="white", linewidth=0.9))
    canvas.text(3.58, 5.08, "Symmetric pair", weight="bold")
    canvas.text(3.58, 2.58, "mirrored counterpart", MIRRORED, 9, weight="bold")


def draw_network(canvas: Canvas) -> None:
    """The shared encoder on both halves, and the cross-attention that joins them."""
    for y, colour in ((3.86, OWN), (1.3, MIRRORED)):
        canvas.arrow((4.5, y), (4.88, y), colour)
        canvas.encoder(4.94, y, colour)
    canvas.axes.plot([5.4, 5.4], [1.96, 3.2], color=FAINT, linewidth=1.2, linestyle=":")
    canvas.text(5.4, 2.58, "shared\nweights", FAINT, 8.5, backgroundcolor="white")
    canvas.arrow((5.98, 3.86), (6.9, 3.3), OWN, -0.2)
    canvas.arrow((5.98, 1.3), (6.9, 1.86), MIRRORED, 0.2)
    canvas.text(6.62, 3.86, "Q", OWN, 12, weight="bold")
    canvas.text(6.62, 1.3, "K, V", MIRRORED, 12, weight="bold")
    canvas.box(6.36, 1.9, 1.5, 1.36, "#1e3a5f")
    canvas.text(7.11, 2.82, "SACA", "white", 15, weight="bold")
    canvas.text(7.11, 2.34, "symmetry-aware\ncross-attention", "white", 8.5)


def draw_tasks(canvas: Canvas, made: Stages) -> None:
    """Pretraining, classification and segmentation, each as what it gives."""
    middle, left, width = 2.58, 8.62, 0.7
    for start, end in ((middle + 0.4, 4.2), (middle, middle), (middle - 0.4, 0.96)):
        canvas.arrow((7.94, start), (left - 0.08, end))
    canvas.picture(left, 3.66, made.holed, fullest(made.aligned_lesion), FAINT, width)
    canvas.picture(left, 0.1, made.head, fullest(made.lesion), FAINT, width).contour(
        seen(made.lesion, fullest(made.lesion)), [0.5], colors=LESION, linewidths=1.8
    )
    canvas.box(left, middle - 0.5, TILE[0] * width, 1.0, "#f3f4f6")
    for y, share, word, colour in ((middle + 0.2, 0.2, "healthy", FAINT), (middle - 0.24, 0.55, "patient", LESION)):
        canvas.axes.add_patch(Rectangle((left + 0.58, y - 0.09), share, 0.18, color=colour))
        canvas.text(left + 0.5, y, word, size=7.5, ha="right")
    words = {
        4.36: ("Pretrain", "fill holes, tell turns,\nmatch views, and the\nsymmetry loss"),
        middle: ("Classify", "a class per subject,\nor an asymmetry score\nafter pretraining alone"),
        0.8: ("Segment", "a mask on the voxel\ngrid of the file"),
    }
    for y, (title, line) in words.items():
        lines = line.count("\n") + 1
        canvas.text(9.98, y + 0.1 * lines + 0.06, title, size=11, weight="bold", ha="left")
        canvas.text(9.98, y - 0.09, line, FAINT, 8.5, ha="left")


def draw(made: Stages) -> Figure:
    """The whole figure."""
    canvas = Canvas(11.6, 5.25)
    draw_head(canvas, made)
    draw_pair(canvas, made)
    draw_network(canvas)
    draw_tasks(canvas, made)
    return canvas.figure


def main(output: str = "docs/figures/method.png") -> None:
    """Draw the figure.

    Args:
        output: the PNG file.
    """
    drawn = io.BytesIO()
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        draw(stages()).savefig(drawn, dpi=130)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Image.open(drawn).convert("RGB").quantize(256).save(output, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    fire.Fire(main)
