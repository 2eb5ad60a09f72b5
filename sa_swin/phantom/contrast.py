"""Contrasts of the built-in cohort: what T1w, FLAIR and CT show of each tissue, with bias field and noise."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from sa_swin.phantom.geometry import random_field

CONTRASTS: dict[str, dict[str, float]] = {
    "T1w": {
        "air": 0.0, "csf": 0.22, "gm": 0.62, "wm": 0.92, "bone": 0.07, "marrow": 0.6, "fat": 1.15, "muscle": 0.5,
        "oedema": 0.56, "tumour": 0.45, "necrosis": 0.26, "infarct": 0.36, "gliosis": 0.5, "blood": 1.2,
    },
    "FLAIR": {
        "air": 0.0, "csf": 0.13, "gm": 0.68, "wm": 0.54, "bone": 0.06, "marrow": 0.35, "fat": 0.75, "muscle": 0.36,
        "oedema": 1.0, "tumour": 0.86, "necrosis": 0.36, "infarct": 1.05, "gliosis": 0.9, "blood": 0.86,
    },
    "CT": {
        "air": -1000, "csf": 5, "gm": 37, "wm": 28, "bone": 1150, "marrow": 450, "fat": -90, "muscle": 50,
        "oedema": 17, "tumour": 44, "necrosis": 12, "infarct": 15, "gliosis": 24, "blood": 66,
    },
}  # fmt: skip
"""Mean value per tissue: MR in units of about white matter on T1w, CT in HU."""
MR_UNIT = 800.0
"""Stored value of 1 in the MR contrasts."""


def paint(
    fractions: dict[str, np.ndarray],
    modality: str,
    points: Tensor,
    generator: np.random.Generator,
    noise: float = 1.0,
    gain: float = 1.0,
) -> np.ndarray:
    """An image of tissue fractions, int16: MR in arbitrary units, CT in HU.

    Args:
        fractions: volume fractions `(X, Y, Z)` by tissue; the rest is air.
        modality: one of `CONTRASTS`.
        points: `(X, Y, Z, 3)` in the head, mm, where random fields are read.
        generator: source of randomness.
        noise: factor on noise, texture and bias field; 0 turns them off.
        gain: factor on MR values, the scanner's.
    """
    image = mix(fractions, jittered(modality, generator))
    if modality == "CT":
        grain = generator.standard_normal(image.shape, dtype=np.float32)
        grain = ndimage.gaussian_filter(grain, 0.6)
        image += noise * generator.uniform(2.5, 4.5) * grain / grain.std()
        return np.rint(np.clip(image, -1024, 3071)).astype(np.int16)
    bias, texture = random_field(generator, 45.0), random_field(generator, 4.0)
    strength = generator.uniform(0.05, 0.12)
    image *= torch.exp(noise * (strength * bias(points)[0] + 0.03 * texture(points)[0])).numpy()
    sigma = noise * generator.uniform(0.015, 0.03)
    real, imaginary = (generator.standard_normal(image.shape, dtype=np.float32) for _ in range(2))
    return np.rint(gain * MR_UNIT * np.hypot(image + sigma * real, sigma * imaginary)).astype(np.int16)


def jittered(modality: str, generator: np.random.Generator) -> dict[str, float]:
    """A subject's own values: 4 % off on MR, 1 HU on CT (bone: 8 %)."""
    values = CONTRASTS[modality]
    draws = generator.standard_normal(len(values))
    if modality == "CT":
        scale = {"bone": 90.0, "marrow": 60.0, "air": 0.0}
        return {name: value + scale.get(name, 1.0) * z for (name, value), z in zip(values.items(), draws, strict=True)}
    return {name: value * (1 + 0.04 * z) for (name, value), z in zip(values.items(), draws, strict=True)}


def mix(fractions: dict[str, np.ndarray], values: dict[str, float]) -> np.ndarray:
    """The mean of the tissues' values weighted by their fractions; air fills the rest."""
    image = np.full(next(iter(fractions.values())).shape, values["air"], np.float32)
    for tissue, fraction in fractions.items():
        image += fraction * (values[tissue] - values["air"])
    return image
