"""The homologous counterpart: what lies at the same place of the other hemisphere, beyond the rigid mirror.

One smooth velocity field on a 4 mm grid bends a volume until it equals its own mirror image. With `M` the mirror and
`psi = exp(v)`, the place homologous to `x` is `psi M psi^-1 (x)`, an involution for any `v`: the counterpart of the
counterpart is the place itself. Adding to `v` what commutes with `M` changes nothing, so that `v` is kept antisymmetric
(`M v M = -v`), and the displacement of the mirror image is `exp(-2v)`. The field comes from Gauss-Newton steps on
locally normalised intensities, hence contrast and bias fields do not matter; where two sides stay unlike (a lesion,
missing tissue) it is filled in from around.

B = volumes, C = channels. Volumes are aligned, `(B, C, X, Y, Z)` in RAS; displacements `(B, 3, X, Y, Z)` are in mm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from custom.alignment.fields import (
    along_axes,
    box,
    displaced,
    displaced_mirror,
    exponential,
    gaussian,
    jacobian_determinants,
    resized,
    round_trip,
)
from custom.alignment.trust import TIGHTEST, CounterpartQuality, distrust_counterpart
from custom.symmetry import LATERAL_AXIS, mirror

FINEST = 2.0
"""Millimetres of a voxel, about, at which the two sides are compared in the last stage."""
FLAT = 0.15
"""Share of the volume's contrast below which a local variation counts as none."""
OUTLIER = 1.0
"""Difference of the normalised intensities beyond which a voxel loses its weight."""
DAMPING = 0.02
"""Per mm^2, added to the curvature: where there is nothing to see, nothing moves."""
UNLIKE, SHARPNESS = 16.0, 4
"""Multiple of the median squared difference at which half of the trust in a place is lost, and how abruptly."""
LEAST_TYPICAL = 0.03
"""Smallest median that counts: of two sides that are nearly equal, no small difference is a lesion."""
TRUST_WINDOW, TRUST_REACH, FILL_REACH = 28.0, 4.0, 12.0
"""Millimetres: of the normalisation that shows a lesion's inside, of the trust's blur, of filling in from around."""
FINISH = 3.0
"""Millimetres, the Gaussian that the velocity is smoothed by in the end: a rough one cannot be inverted on its grid."""


@dataclass(frozen=True)
class Stage:
    """One resolution of the estimate.

    Args:
        pooling: voxels of the finest grid that make one here, along each axis; a power of two.
        steps: Gauss-Newton steps.
        window: voxels of the local normalisation, odd.
        reach: mm, the Gaussian within which places move alike.
        stiffness: mm, the Gaussian that smooths the velocity after each step.
    """

    pooling: int
    steps: int
    window: int
    reach: float
    stiffness: float


STAGES = (Stage(4, 8, 3, 8.0, 1.5), Stage(2, 10, 5, 4.0, 1.0), Stage(1, 5, 7, 2.5, 1.0))


def homologous_counterpart(volume: Tensor, spacing: Sequence[float]) -> tuple[Tensor, list[CounterpartQuality]]:
    """What each place of an aligned volume finds at its homologous place, on the volume's own grid.

    Where the field cannot be trusted (`distrust_counterpart`) it is the mirror image.

    Args:
        volume: `(B, C, X, Y, Z)`, one grid, the midsagittal plane in its middle.
        spacing: mm per voxel along X, Y, Z.

    Returns:
        The counterpart, `(B, C, X, Y, Z)`, and one quality per volume.
    """
    field, quality = homologous_field(volume, spacing)
    return displaced_mirror(volume, field, spacing), quality


@torch.no_grad()
def homologous_field(volume: Tensor, spacing: Sequence[float]) -> tuple[Tensor, list[CounterpartQuality]]:
    """The displacement that takes the mirror image to the homologous counterpart; 0 where it cannot be trusted.

    Args:
        volume: `(B, C, X, Y, Z)`, aligned.
        spacing: mm per voxel.

    Returns:
        `(B, 3, X, Y, Z)` in mm: the counterpart at `x` is the mirror image at `x + field(x)`; and the qualities.
    """
    with torch.autocast(volume.device.type, enabled=False):
        extent = [n * s for n, s in zip(volume.shape[2:], spacing, strict=True)]
        size = [_multiple(mm / FINEST, 2 * STAGES[0].pooling) for mm in extent]
        fine = resized(volume.float(), size)
        step = torch.tensor([mm / n for mm, n in zip(extent, size, strict=True)], device=volume.device)
        images = {p: F.avg_pool3d(fine, p) for p in (1, 2, 4)}
        contrast = _contrast(images[2])
        velocity = fine.new_zeros(len(fine), 3, *images[STAGES[0].pooling].shape[2:])
        for stage in STAGES:
            velocity, trust = _run(stage, images, contrast, step, velocity)
        finish = [gaussian(n, FINISH / s, fine) for n, s in zip(velocity.shape[2:], (2 * step).tolist(), strict=True)]
        velocity = _unfolded(along_axes(velocity, finish), 2 * step)
        field = exponential(-2 * velocity, 2 * step)
        quality = _qualities(images[2], contrast, field, trust, 2 * step)
        field = _involution(resized(field, size), step)
        usable = torch.tensor([distrust_counterpart(q) is None for q in quality], device=field.device)
        return resized(field * usable.reshape(-1, 1, 1, 1, 1), volume.shape[2:]), quality


def _run(
    stage: Stage, images: dict[int, Tensor], contrast: Tensor, step: Tensor, velocity: Tensor
) -> tuple[Tensor, Tensor]:
    """The velocity after the steps of one stage, on its grid or at 4 mm, and the trust `(B, 1, X, Y, Z)` in it."""
    pooling = max(stage.pooling, 2)
    coarse, grid = images[pooling], pooling * step
    velocity = resized(velocity, coarse.shape[2:])
    fine = normalized(images[stage.pooling], stage.window, contrast)
    broad = normalized(coarse, 2 * int(TRUST_WINDOW / 2 / (pooling * FINEST)) + 1, contrast)
    reach, stiff, blur, fill = (
        [gaussian(n, mm / s, fine) for n, s in zip(coarse.shape[2:], grid.tolist(), strict=True)]
        for mm in (stage.reach, stage.stiffness, TRUST_REACH, FILL_REACH)
    )
    for _ in range(stage.steps):
        bent = exponential(velocity, grid, squarings=4)
        normal, pull = _normal_equations(fine, resized(bent, fine.shape[2:]), stage.pooling * step)
        normal, pull = (along_axes(_both_halves(x).flatten(1, -4), reach) for x in _pooled(normal, pull, coarse))
        trust = _trust(broad, bent / grid.reshape(3, 1, 1, 1), normal, blur)
        velocity = along_axes(velocity + _solved(normal, pull, 0.75 * float(grid.max())), stiff)
        known = along_axes(trust, fill).clamp_min(1e-6)
        velocity = trust * velocity + (1 - trust) * along_axes(trust * velocity, fill) / known
    return velocity, trust


def normalized(image: Tensor, window: int, contrast: Tensor) -> Tensor:
    """`(I - mean) / sqrt(variance + (FLAT contrast)^2)` in cubes of `window` voxels."""
    boxes = [box(n, window, image) for n in image.shape[2:]]
    mean = along_axes(image, boxes)
    variance = (along_axes(image**2, boxes) - mean**2).clamp_min(0)
    return (image - mean) / (variance + (FLAT * contrast) ** 2).sqrt()


def _contrast(image: Tensor) -> Tensor:
    """The typical local variation of each channel, `(B, C, 1, 1, 1)`, whatever the share of air."""
    boxes = [box(n, 5, image) for n in image.shape[2:]]
    mean = along_axes(image, boxes)
    spread = (along_axes(image**2, boxes) - mean**2).clamp_min(0).sqrt()
    total = (spread**2).sum((2, 3, 4), keepdim=True)
    return ((spread**3).sum((2, 3, 4), keepdim=True) / total.clamp_min(1e-12)).clamp_min(1e-6)


def _normal_equations(feature: Tensor, displacement: Tensor, spacing: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Newton on the difference of the two sides of the displaced feature, on one half.

    Returns:
        The weighted outer products `(B, 3, 3, X/2, Y, Z)` of the slope, per mm^2, and its products with the
        difference, `(B, 3, X/2, Y, Z)`, summed over channels.
    """
    bent = displaced(feature, displacement / spacing.reshape(3, 1, 1, 1))
    half = bent.shape[2] // 2
    near, far = bent[:, :, half:], mirror(bent)[:, :, half:]
    residual = near - far
    weight = 1 / (1 + (residual / OUTLIER) ** 2) ** 2
    # a step u here is -M u opposite, so that the difference changes by the slope of the sum, which is even
    slope = _even_gradient(near + far) / spacing.reshape(3, 1, 1, 1)  # B C 3 X/2 Y Z
    weighted = slope * weight[:, :, None]
    normal = torch.einsum("bcixyz,bcjxyz->bijxyz", weighted, slope)
    return normal, (weighted * residual[:, :, None]).sum(1)


def _even_gradient(x: Tensor) -> Tensor:
    """Central differences `(B, C, 3, X, Y, Z)` of a half whose continuation before its first slice is its mirror."""
    padded = F.pad(torch.cat([x[:, :, :1], x], 2), (1, 1, 1, 1, 0, 1), mode="replicate")
    inner = slice(1, -1)
    return 0.5 * torch.stack(
        [
            padded[:, :, 2:, inner, inner] - padded[:, :, :-2, inner, inner],
            padded[:, :, inner, 2:, inner] - padded[:, :, inner, :-2, inner],
            padded[:, :, inner, inner, 2:] - padded[:, :, inner, inner, :-2],
        ],
        2,
    )


def _pooled(normal: Tensor, pull: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    factor = pull.shape[-1] // coarse.shape[-1]
    if factor == 1:
        return normal, pull
    return F.avg_pool3d(normal.flatten(1, 2), factor).unflatten(1, (3, 3)), F.avg_pool3d(pull, factor)


def _both_halves(half: Tensor) -> Tensor:
    """Continue a vector or matrix field of the right half: a component changes sign once per index other than x."""
    sign = half.new_tensor([1.0, -1.0, -1.0])
    sign = sign[:, None] * sign if half.ndim == 6 else sign
    return torch.cat([mirror(half) * sign[..., None, None, None], half], LATERAL_AXIS - 3)


def _solved(normal: Tensor, pull: Tensor, largest: float) -> Tensor:
    """The damped Gauss-Newton step `(B, 3, X, Y, Z)`, at most `largest` mm, from `(B, 9, ...)` and `(B, 3, ...)`."""
    xx, xy, xz, _, yy, yz, _, _, zz = normal.unbind(1)
    xx, yy, zz = xx + DAMPING, yy + DAMPING, zz + DAMPING
    cofactors = [yy * zz - yz**2, xz * yz - xy * zz, xy * yz - xz * yy,
                 xx * zz - xz**2, xy * xz - xx * yz, xx * yy - xy**2]  # fmt: skip
    a, b, c, d, e, f = cofactors
    x, y, z = pull.unbind(1)
    step = -torch.stack([a * x + b * y + c * z, b * x + d * y + e * z, c * x + e * y + f * z], 1)
    step = step / (xx * a + xy * b + xz * c)[:, None]
    return step * (largest / step.norm(dim=1, keepdim=True).clamp_min(largest))


def _trust(broad: Tensor, voxels: Tensor, normal: Tensor, blur: Sequence[Tensor]) -> Tensor:
    """1 where the two sides are alike, 0 where they are not: `(B, 1, X, Y, Z)`."""
    bent = displaced(broad, voxels)
    unlike = along_axes(((bent - mirror(bent)) ** 2).mean(1, keepdim=True), blur)
    typical = unlike.masked_fill(~_structured(normal), torch.nan).flatten(1).nanmedian(1).values.nan_to_num(1.0)
    return 1 / (1 + (unlike / (UNLIKE * typical.clamp_min(LEAST_TYPICAL).reshape(-1, 1, 1, 1, 1))) ** SHARPNESS)


def _structured(normal: Tensor) -> Tensor:
    """Where there is something to see, `(B, 1, X, Y, Z)`: more curvature than the volume's mean."""
    trace = normal[:, ::4].sum(1, keepdim=True)
    return trace > trace.mean((2, 3, 4), keepdim=True)


def _unfolded(velocity: Tensor, spacing: Tensor) -> Tensor:
    """Smooth the velocity where its field would come near folding, until it does not."""
    smoother = [gaussian(n, 1.0, velocity) for n in velocity.shape[2:]]
    for _ in range(10):
        tight = jacobian_determinants(exponential(-2 * velocity, spacing), spacing)[:, None] < TIGHTEST
        if not tight.any():
            break
        around = along_axes(F.max_pool3d(tight.float(), 5, 1, 2), smoother)
        velocity = velocity + around * (along_axes(velocity, smoother) - velocity)
    return velocity


def _involution(field: Tensor, spacing: Tensor, rounds: int = 4) -> Tensor:
    """Make the counterpart's counterpart the place itself on this grid, too, where interpolation has blurred that."""
    for _ in range(rounds):
        field = field - round_trip(field, spacing) / 2
    return field


def _qualities(
    image: Tensor, contrast: Tensor, field: Tensor, trust: Tensor, spacing: Tensor
) -> list[CounterpartQuality]:
    feature = normalized(image, STAGES[1].window, contrast)
    head = (feature**2).mean(1, keepdim=True)
    figures = [
        _similarity(feature, mirror(feature)),
        _similarity(feature, displaced(mirror(feature), field / spacing.reshape(3, 1, 1, 1))),
        (trust * head).flatten(1).sum(1) / head.flatten(1).sum(1).clamp_min(1e-6),
        field.norm(dim=1).flatten(1).amax(1),
        jacobian_determinants(field, spacing).flatten(1).amin(1),
    ]
    return [CounterpartQuality(*row) for row in torch.stack(figures, 1).tolist()]


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    product, energy = (a * b).flatten(1).sum(1), (a**2 + b**2).flatten(1).sum(1)
    return 2 * product / energy.clamp_min(1e-6)


def _multiple(value: float, of: int) -> int:
    return max(of, of * round(value / of))
