"""Is a volume a CT in Hounsfield units? Told from its air, brain and bone, whatever its file says.

Asked of whole heads: full range or clipped, with or without skull, contrast, couch, padding outside the field of view.
Volumes are `(X, Y, Z)`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PADDING = -1100.0
"""HU below which there is no tissue and no air: what scanners write outside of their field of view."""
AIR = -900.0
DARK = -200.0  # HU: darker than fat
BRAIN = (-20.0, 80.0)
"""HU of the middle of a head: brain, ventricles, blood, the muscles of a neck; its median over a few centimetres."""
STRIPPED_BRAIN = (-20.0, 60.0)
"""HU of all the tissue, its median, where there is no skull."""
BONE = 200.0
DENSE = 110.0  # HU: between it and bone lie few voxels, of calcifications, contrast, and bone in part
LEAST_BONE = 0.02
"""Share of the tissue from which on there is a skull."""
MOST_DENSE = 0.12
CUT_OFF = 300.0
"""HU: bone that is cut off below has lost what tells it from blood and contrast."""
MOST_CUT_OFF = 0.05
"""Share of the tissue at exactly the highest value, beyond which bone was cut off."""
MOST_NEAR_BACKGROUND = 0.15
"""Share of the volume that lies close to its background, where the background is no air: noise of scaled air."""
LEAST_AIR = 0.1
"""Share of what is darker than tissue, and no one value, that is air."""
INTERCEPT = 1024.0
MR_SUFFIXES = ("t1w", "t2w", "t1", "t2", "t1c", "t1ce", "t1gd", "t1n", "t2f", "flair", "pdw", "t2starw", "swi")


@dataclass(frozen=True)
class Units:
    """What tells the units of a volume.

    Args:
        background: value outside of the head.
        middle: median in the middle of the head.
        tissue: median of the tissue.
        bone, dense, cut_off: shares of the tissue above `BONE`, from `DENSE` to `BONE`, and at the highest value.
        highest: value.
        near_background: share of the volume within 3 of the background, but not at it.
        air: share of the volume from `PADDING` to `AIR`.
        dark: share of the volume that is darker than tissue, without the voxels at the lowest value.
    """

    background: float
    middle: float
    tissue: float
    bone: float
    dense: float
    cut_off: float
    highest: float
    near_background: float
    air: float
    dark: float

    @classmethod
    def of(cls, volume: np.ndarray) -> "Units":
        """Measured on a grid of 64 to 127 points along each axis."""
        step = (slice(None, None, max(1, n // 64)) for n in volume.shape)
        raw = volume[tuple(step)].astype(np.float32)
        values = np.maximum(raw, PADDING)
        faces = np.concatenate([np.take(values, end, axis).ravel() for axis in range(3) for end in (0, -1)])
        background = float(np.median(faces))
        tissue = values[(values > DARK) & (values != background)]
        highest = float(tissue.max()) if tissue.size else background
        near = np.abs(values - background)
        return cls(
            background=background,
            middle=_middle(values, background),
            tissue=float(np.median(tissue)) if tissue.size else background,
            bone=_share(tissue > BONE),
            dense=_share((tissue > DENSE) & (tissue <= BONE)),
            cut_off=_share(tissue == highest),
            highest=highest,
            near_background=_share((near > 0) & (near <= 3)),
            air=_share((values > PADDING) & (values <= AIR)),
            dark=_share((raw < DARK) & (raw > raw.min())),
        )


def _share(where: np.ndarray) -> float:
    return float(where.mean()) if where.size else 0.0


def _middle(values: np.ndarray, background: float) -> float:
    """Median in an ellipsoid around the foreground's centre, half its standard deviations large: some 4 cm across."""
    low, high = np.quantile(values, (0.005, 0.995))
    foreground = np.abs(values - background) > 0.15 * (high - low)
    if not foreground.any():
        return background
    axes = np.nonzero(foreground)
    distance = sum(
        ((np.arange(n) - own.mean()) / (0.5 * max(own.std(), 1.0))).reshape([-1 if i == axis else 1 for i in range(3)])
        ** 2
        for axis, (n, own) in enumerate(zip(values.shape, axes, strict=True))
    )
    inside = values[distance <= 1]
    return float(np.median(inside)) if inside.size else background


def hounsfield_problem(volume: np.ndarray) -> str | None:
    """Why a volume cannot be a head in Hounsfield units, in a sentence with what to do; None where it can.

    Args:
        volume: `(X, Y, Z)`, finite.
    """
    why = _implausible(volume)
    if why is None:
        return None
    for offset, sign in ((INTERCEPT, "-"), (1000.0, "-"), (-INTERCEPT, "+")):
        if _implausible(volume.astype(np.float32) - offset) is None:
            return (
                f"{why}; {sign}{abs(offset):g} to all values would make it plausible: the rescale intercept is missing "
                "or was applied twice; convert the DICOM files anew, or mend the values"
            )
    return f"{why}; convert the DICOM files anew with slope and intercept, or give --modality MR for an MR image"


def _implausible(volume: np.ndarray) -> str | None:
    units = Units.of(volume)
    skull = units.bone >= LEAST_BONE
    places = [("the middle of the head", units.middle, BRAIN)]
    places += [] if skull else [("the tissue", units.tissue, STRIPPED_BRAIN)]
    for place, found, (low, high) in places:
        if not low <= found <= high:
            return f"no CT in Hounsfield units: {place} is about {found:.4g}, where brain is {low:g} to {high:g} HU"
    if units.dark > LEAST_BONE and units.air < LEAST_AIR * units.dark:
        return (
            f"no CT in Hounsfield units: what surrounds the head is about {units.background:.4g}, and air is -1000 HU"
        )
    if units.cut_off > MOST_CUT_OFF and units.highest < CUT_OFF:
        return (
            f"no CT in all its Hounsfield units: {units.cut_off:.0%} of the tissue is {units.highest:.4g}, so a window "
            "has cut its bone off"
        )
    if units.dense > MOST_DENSE and units.dense > 2 * units.bone:
        return (
            f"no CT in Hounsfield units: {units.dense:.0%} of the tissue is {DENSE:g} to {BONE:g}, more than any brain "
            f"has, and {units.bone:.0%} above, where bone is"
        )
    if not skull and units.air < LEAST_BONE and units.near_background > MOST_NEAR_BACKGROUND:
        return (
            f"no CT in Hounsfield units: no bone, yet what surrounds the head is not one value but near "
            f"{units.background:.4g}, as of air whose values were scaled down"
        )
    return None


def units_problem(volume: np.ndarray, modality: str | None) -> str | None:
    """Why the values of a volume are not of its modality, in a sentence; None where they may be.

    Args:
        volume: `(X, Y, Z)`, finite.
        modality: `CT`; `MR`, whose values have no units, and only must not be a CT with its air; None asks nothing.
    """
    if modality == "CT":
        return hounsfield_problem(volume)
    if modality == "MR" and Units.of(volume).air >= LEAST_BONE and _implausible(volume) is None:
        return (
            f"a CT in Hounsfield units, to be taken for MR: air is below {AIR:g} and the middle of the head is brain; "
            "give --modality CT"
        )
    return None


def modality_of(path: str) -> str | None:
    """The modality that a file's name tells: `CT` of `a_ct.nii.gz`, `MR` of `a_T1w.nii.gz`, else None."""
    suffix = re.split(r"[_\-. ]", Path(path).name.lower().removesuffix(".gz").rpartition(".")[0])[-1]
    return "CT" if suffix == "ct" else "MR" if suffix in MR_SUFFIXES else None
