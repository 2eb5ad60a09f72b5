"""The usual way to the midsagittal plane, for comparison: rigid registration of a head to its mirror image, halved.

SimpleITK and ANTsPy, the optional dependencies `pip install -e '.[benchmark]'`, each in its best reasonable setting:
a CT is clipped to soft tissue, centres are matched, and SimpleITK, which has no search of its own, gets several starts.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from custom.alignment.head import SOFT_TISSUE_WINDOW, resample

Found = tuple[Tensor, float, str]
"""Unit normal `(3,)` and offset, world mm; a remark."""


def half(reflection: Tensor, affine: Tensor, center: Tensor) -> Found:
    """The plane of a reflection `(4, 4)` in voxels, on a grid of 1 mm along the world's axes."""
    linear = reflection[:3, :3]
    normal = torch.linalg.eigh((linear + linear.T) / 2).eigenvectors[:, 0]
    normal = normal * normal[0].sign()
    middle = (center + linear @ center + reflection[:3, 3]) / 2 + affine[:3, 3]
    return normal, (normal @ middle).item(), ""


def on_world_grid(image: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    """A volume `(X, Y, Z)` on a grid of 1 mm along the world's axes that holds it all, and the grid's affine."""
    corners = torch.tensor([[*corner, 1] for corner in itertools.product(*((0, n - 1) for n in image.shape))])
    world = (affine @ corners.to(affine.dtype).T)[:3]
    low, high = world.amin(1), world.amax(1)
    grid = torch.eye(4, dtype=affine.dtype)
    grid[:3, 3] = low
    x, y, z = (int(n) + 1 for n in (high - low).ceil())
    values, known = resample(image, affine, grid, (x, y, z))
    return torch.where(known > 0, values, image.min()), grid


def _tissue(image: Tensor) -> Tensor:
    return image.clamp(*SOFT_TISSUE_WINDOW) if image.min() < -500 else image


def ants_half(image: Tensor, affine: Tensor) -> Found:
    """ANTs' `Rigid` (Mattes mutual information, centres of mass matched, four resolutions)."""
    import ants

    array = _tissue(image).numpy()
    moving, fixed = ants.from_numpy(array), ants.from_numpy(np.flip(array, 0).copy())
    found = ants.registration(fixed, moving, type_of_transform="Rigid")
    motion = ants.read_transform(found["fwdtransforms"][0])
    return half(_reflection(motion.apply_to_point, image.shape), affine, _middle(image))


def simpleitk_half(image: Tensor, affine: Tensor) -> Found:
    """SimpleITK: Mattes mutual information, Euler angles, gradient descent at 8, 4, 2 and 1 mm.

    Starts: foregrounds' centres of mass matched, and yaw and roll of -40 to 40 degrees (twice the head's own) in steps
    of 20; the best three at 8 mm are followed to 4 mm, the best of those to the end. One start at the centres of the
    volumes, a common setting, ends 10 to 20 degrees off on tilted heads.
    """
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    array = _tissue(image).permute(2, 1, 0).numpy()
    moving, fixed = sitk.GetImageFromArray(array), sitk.GetImageFromArray(np.flip(array, 2).copy())
    starts = [
        _simpleitk_descend(fixed, moving, start, [8, 4], [4, 2], 0.5) for start in _simpleitk_starts(fixed, moving)
    ]
    _, best = min(starts, key=lambda start: start[0])
    _, found = _simpleitk_descend(fixed, moving, best, [2, 1], [1, 0], 0.1)
    return half(_reflection(found.TransformPoint, image.shape), affine, _middle(image))


def _simpleitk_starts(fixed: Any, moving: Any) -> list[Any]:
    import SimpleITK as sitk  # noqa: N813

    foregrounds = [sitk.Cast(sitk.OtsuThreshold(volume, 0, 1), sitk.sitkFloat32) for volume in (fixed, moving)]
    moments = sitk.CenteredTransformInitializerFilter.MOMENTS
    matched = sitk.Euler3DTransform(sitk.CenteredTransformInitializer(*foregrounds, sitk.Euler3DTransform(), moments))
    coarse = [sitk.Shrink(sitk.SmoothingRecursiveGaussian(volume, 4), [8] * 3) for volume in (fixed, moving)]
    evaluation = _simpleitk_registration([1], [0], 1.0)
    scored = []
    for yaw, roll in itertools.product(range(-40, 41, 20), repeat=2):
        start = sitk.Euler3DTransform(matched)
        start.SetRotation(0, math.radians(roll), math.radians(yaw))
        evaluation.SetInitialTransform(start, inPlace=False)
        scored.append((evaluation.MetricEvaluate(*coarse), start))
    return [start for _, start in sorted(scored, key=lambda item: item[0])[:3]]


def _simpleitk_registration(shrink: list[int], sigmas: list[float], share: float) -> Any:
    import SimpleITK as sitk  # noqa: N813

    registration = sitk.ImageRegistrationMethod()
    registration.SetMetricAsMattesMutualInformation(32)
    registration.SetMetricSamplingStrategy(registration.REGULAR if share < 1 else registration.NONE)
    registration.SetMetricSamplingPercentage(share)
    registration.SetInterpolator(sitk.sitkLinear)
    registration.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 100, relaxationFactor=0.6)
    registration.SetOptimizerScalesFromPhysicalShift()
    registration.SetShrinkFactorsPerLevel(shrink)
    registration.SetSmoothingSigmasPerLevel(sigmas)
    return registration


def _simpleitk_descend(
    fixed: Any, moving: Any, start: Any, shrink: list[int], sigmas: list[float], share: float
) -> tuple[float, Any]:
    """The metric, the lower the better, and the transform at the end of a descent."""
    import SimpleITK as sitk  # noqa: N813

    registration = _simpleitk_registration(shrink, sigmas, share)
    registration.SetInitialTransform(start, inPlace=False)
    found = registration.Execute(fixed, moving)
    return registration.GetMetricValue(), sitk.Euler3DTransform(found.GetNthTransform(0))


def _reflection(motion: Any, shape: Sequence[int]) -> Tensor:
    """The head's own reflection `(4, 4)`: a point mirrored in the array, then the motion that registers the two."""
    origin = np.array(motion((0.0, 0.0, 0.0)))
    reflection, mirrored = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    reflection[:3, :3] = torch.from_numpy(np.stack([np.array(motion(tuple(axis))) - origin for axis in np.eye(3)], 1))
    reflection[:3, 3] = torch.from_numpy(origin)
    mirrored[0, 0], mirrored[0, 3] = -1, shape[0] - 1
    return reflection @ mirrored


def _middle(image: Tensor) -> Tensor:
    return (torch.tensor(image.shape, dtype=torch.float64) - 1) / 2


METHODS = {"SimpleITK": simpleitk_half, "ANTsPy": ants_half}
MODULES = {"SimpleITK": "SimpleITK", "ANTsPy": "ants"}
