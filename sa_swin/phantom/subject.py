"""One subject of the built-in cohort: from configuration and number to images, lesion mask and midsagittal plane."""

import zlib
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import nibabel as nib
import numpy as np
from torch import Tensor

from sa_swin.phantom.anatomy import TISSUES, Anatomy, label_anatomy, label_maps
from sa_swin.phantom.contrast import CONTRASTS, paint
from sa_swin.phantom.geometry import Deformation, Pose, head_points, random_deformation, random_pose
from sa_swin.phantom.head import icbm_anatomy
from sa_swin.phantom.lesion import FINDINGS, PLACEMENTS, apply_lesion, draw_mask, in_standard, plan_lesion, widen_sulci

FIELD_OF_VIEW = (208.0, 240.0, 208.0)
"""Extent of every image, mm."""
CENTRE_MM = (0.0, -18.0, 2.0)
"""The point of the ICBM152 space about which heads are tilted."""
SITES = {"north": ("RAS", 1.0), "south": ("LPS", 0.6), "west": ("LIA", 1.7)}
"""Per site: storage orientation and the scanner's gain on MR values."""
AFFECTED = {"bilateral": "both", "midline": "midline"}
"""The side of a lesion that has none, as participants.tsv has it."""
SKULL = ("true", "false", "mixed")
ASYMMETRY = 0.2
"""Share of the deformation's one-sided part that is kept: natural left-right variation."""
SMALLEST_ML = 3.0
"""A lesion mask that ends up smaller in this subject's brain is drawn again."""


@dataclass(frozen=True)
class Config:
    """What decides a cohort's content.

    Args:
        subjects: how many, 4 at least.
        seed: of every random draw.
        modality: one or more of `CONTRASTS`.
        spacing: voxel size, mm.
        patients: share of the subjects with a lesion.
        findings: those of the patients, among `FINDINGS`.
        skull: whether skull and scalp are there, one of `SKULL`.
        tilt: largest roll, yaw and pitch, degrees.
        noise: factor on noise, texture and bias field.
        anatomies: folder of FreeSurfer label maps in place of ICBM152.
        lesions: folder of lesion masks in standard space, for infarcts and haemorrhages.
        lesion_ml: smallest and largest volume of painted lesions; None leaves it to the finding.
        bilateral: share of the patients whose lesion has a twin at the mirrored place.
        midline: share of the patients whose lesion lies across the midsagittal plane, as much on either side; painted.
        shares: of the subjects in training, validation and testing.
    """

    subjects: int = 40
    seed: int = 0
    modality: tuple[str, ...] = ("T1w",)
    spacing: float = 2.0
    patients: float = 0.5
    findings: tuple[str, ...] = FINDINGS
    skull: str = "true"
    tilt: float = 8.0
    noise: float = 1.0
    anatomies: str | None = None
    lesions: str | None = None
    lesion_ml: tuple[float, float] | None = None
    bilateral: float = 0.0
    midline: float = 0.0
    shares: tuple[float, float, float] = (0.6, 0.15, 0.25)

    def __post_init__(self) -> None:
        """Refuse what cannot be made, in one sentence."""
        for name, known in (("modality", tuple(CONTRASTS)), ("findings", FINDINGS)):
            values = getattr(self, name)
            unknown = [value for value in values if value not in known]
            if unknown or not values or len(set(values)) < len(values):
                raise ValueError(
                    f"{name} must be one or more of {', '.join(known)}, each once; got {', '.join(values)}"
                )
        if self.skull not in SKULL:
            raise ValueError(f"skull must be one of {', '.join(SKULL)}; got {self.skull}")
        ranges = {
            "subjects": (4, 999_999),
            "seed": (0, 2**32 - 1),
            "spacing": (0.5, 8),
            "patients": (0, 1),
            "bilateral": (0, 1),
            "midline": (0, 1),
            "tilt": (0, 45),
        }
        for name, (low, high) in {**ranges, "noise": (0, 10)}.items():
            value = getattr(self, name)
            if isinstance(value, str) or not low <= value <= high:
                raise ValueError(f"{name} must lie between {low} and {high}; got {value}")
        if self.bilateral + self.midline > 1:
            raise ValueError(f"bilateral and midline together must be 1 at most; got {self.bilateral + self.midline:g}")
        if self.lesion_ml is not None and (
            len(self.lesion_ml) != 2 or not 3 <= self.lesion_ml[0] < self.lesion_ml[1] <= 150
        ):
            raise ValueError(f"lesion_ml must be smallest,largest between 3 and 150 ml; got {self.lesion_ml}")
        if len(self.shares) != 3 or min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares must be three positive numbers with sum 1; got {self.shares}")
        for folder in (self.anatomies, self.lesions):
            if folder is not None:
                label_maps(folder)

    @property
    def factor(self) -> int:
        """Voxels of the source, per axis, that are averaged before sampling: an antialiasing filter."""
        return max(1, round(self.spacing / 1.6))

    @cached_property
    def record(self) -> dict[str, object]:
        """The configuration as JSON holds it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Subject:
    """A subject's data, as `sa-swin phantom` writes it.

    Args:
        number: from 1.
        images: int16 images by modality, on one grid in the site's storage orientation.
        mask: the lesion, uint8, on the same grid; None in the healthy.
        pose: of the head in the world.
        participant: the row of participants.tsv.
    """

    number: int
    images: dict[str, nib.Nifti1Image]
    mask: nib.Nifti1Image | None
    pose: Pose
    participant: dict[str, object]


def diagnosis(config: Config, number: int) -> tuple[str, int, str]:
    """Diagnosis, side (1 right, -1 left, 0 none), and which of `PLACEMENTS` the lesion has.

    Findings and sides take turns among the patients, and so do rounds of all findings with one placement.
    """
    before = int((number - 1) * config.patients + 1e-9)
    if int(number * config.patients + 1e-9) == before:
        return "healthy", 0, "one-sided"
    kinds = len(config.findings)
    first = config.seed % 2
    turn = before // kinds
    side = 1 if (before + turn + first) % 2 else -1
    return config.findings[before % kinds], side, placement(config, turn)


def placement(config: Config, turn: int) -> str:
    """Which of `PLACEMENTS` the lesions of a round have."""
    counts = dict.fromkeys(PLACEMENTS, 0)
    for rounds in range(1, turn + 2):
        place = "one-sided"
        if int(rounds * config.bilateral + 1e-9) > counts["bilateral"]:
            place = "bilateral"
        elif int(rounds * (config.bilateral + config.midline) + 1e-9) > counts["bilateral"] + counts["midline"]:
            place = "midline"
        counts[place] += 1
    return place


def subject_anatomy(config: Config, generator: np.random.Generator) -> tuple[Anatomy, np.ndarray, int]:
    """A subject's source anatomy, the point about which it is tilted, and the anatomy's number.

    A label map is as often as not reflected.
    """
    if config.anatomies is None:
        return icbm_anatomy(config.factor), np.array(CENTRE_MM), 0
    paths = label_maps(config.anatomies)
    number = int(generator.integers(len(paths)))
    anatomy = label_anatomy(paths[number], config.factor)
    reflection = np.diag([float(generator.choice([-1, 1])), 1, 1, 1])
    return replace(anatomy, affine=reflection @ anatomy.affine), np.zeros(3), number


def lesion_masks(config: Config, number: int) -> list[str] | None:
    """The lesion masks for an anatomy, apart from those of every other anatomy; None where none are given."""
    if config.lesions is None:
        return None
    anatomies = len(label_maps(config.anatomies)) if config.anatomies else 1
    return label_maps(config.lesions)[number::anatomies]


def grid(spacing: float) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of the images in RAS: a box about the world's origin."""
    shape = tuple(round(extent / spacing) for extent in FIELD_OF_VIEW)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = [-spacing * (n - 1) / 2 for n in shape]
    return shape, affine


def make_subject(config: Config, number: int) -> Subject:
    """Make subject `number` (from 1), which depends on nothing but the seed and the number.

    Raises:
        ValueError: when an anatomy or a lesion file cannot be used.
    """
    generator = np.random.default_rng([config.seed, number])
    finding, side, place = diagnosis(config, number)
    site = str(generator.choice(list(SITES)))
    bare = config.skull == "false" or (config.skull == "mixed" and generator.random() < 0.5)
    anatomy, centre, number_of_anatomy = subject_anatomy(config, generator)
    amount = 1.0 if config.anatomies is None else 0.6
    deformation = random_deformation(generator, centre, amount, ASYMMETRY)
    pose = random_pose(generator, config.tilt)
    shape, affine = grid(config.spacing)
    points = head_points(shape, affine, pose)
    if side:
        masks = lesion_masks(config, number_of_anatomy)
        fractions, brain, mask = with_lesion(
            generator, config, finding, side, place, masks, anatomy, deformation, points
        )
    else:
        fractions, brain = sample_tissues(anatomy, deformation(points))
        mask = np.zeros(shape, bool)
    keep = brain > (0.5 if bare else -1)
    axes, gain = SITES[site]
    images = {}
    for modality in config.modality:
        own = np.random.default_rng([config.seed, number, zlib.crc32(modality.encode())])
        image = paint(fractions, modality, points, own, config.noise, gain)
        images[modality] = stored(np.where(keep, image, np.int16(CONTRASTS[modality]["air"])), affine, axes)
    participant = {
        "participant_id": f"sub-{number:03d}",
        "diagnosis": finding,
        "healthy": side == 0,
        "side": AFFECTED.get(place, {-1: "left", 0: "n/a", 1: "right"}[side]),
        "lesion_ml": round(float(mask.sum()) * config.spacing**3 / 1000, 3),
        "site": site,
        "skull": not bare,
        "anatomy": number_of_anatomy,
    }
    return Subject(number, images, stored(mask.astype(np.uint8), affine, axes) if side else None, pose, participant)


def sample_tissues(anatomy: Anatomy, where: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tissue fractions and the brain, 0-1, at points of the anatomy: the only interpolation an image goes through."""
    *volumes, brain = anatomy.sample(where, (*TISSUES, "brain")).numpy()
    return dict(zip(TISSUES, volumes, strict=True)), brain


def with_lesion(
    generator: np.random.Generator,
    config: Config,
    finding: str,
    side: int,
    place: str,
    masks: list[str] | None,
    anatomy: Anatomy,
    deformation: Deformation,
    points: Tensor,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Tissue fractions with a lesion, the brain, and the lesion's mask, `(X, Y, Z)` each.

    Raises:
        ValueError: when of twenty lesions in a row less than 3 ml falls into this brain.
    """
    where = deformation(points)
    (depth,) = anatomy.sample(where, ("depth",))
    for _ in range(20):
        plan = plan_lesion(generator, finding, side, anatomy, deformation, masks, config.lesion_ml, place)
        pushed = deformation(plan.displaced(points, depth)) if plan.pushes else where
        fractions, brain = sample_tissues(anatomy, pushed)
        tissue = fractions["gm"] + fractions["wm"] > 0.5
        half = (brain > 0.5) & (side * plan.folded(points)[..., 0].numpy() > plan.margin)
        mask, rank = draw_mask(plan, points, tissue, half, in_standard(where, anatomy), config.spacing)
        if mask.sum() * config.spacing**3 >= SMALLEST_ML * 1000:
            if finding == "atrophy":
                widen_sulci(fractions, mask, plan.texture(points)[0].numpy(), depth.numpy(), config.spacing)
            apply_lesion(fractions, finding, mask, rank, config.spacing)
            return fractions, brain, mask
    source = config.lesions or config.anatomies
    raise ValueError(
        f"less than {SMALLEST_ML:g} ml of any of 20 lesions fell into the brain; check affines in {source}"
    )


def stored(volume: np.ndarray, affine: np.ndarray, axes: str) -> nib.Nifti1Image:
    """A RAS volume as a NIfTI image stored in another orientation; the world does not change."""
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    image = nib.Nifti1Image(volume, affine).as_reoriented(turn)
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    return image
