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
LEAST_ALIKE = 0.8
"""Similarity below which the two sides are no counterparts: of 17 scans of real heads, most with a glioma, the least
has 0.85; noise within an outline reaches 0.66, within a strong one 0.80."""
LEAST_TYPICAL = 0.03
"""Smallest median that counts: of two sides that are nearly equal, no small difference is a lesion."""
TRUST_WINDOW, TRUST_REACH, FILL_REACH = 28.0, 4.0, 12.0
"""Millimetres: of the normalisation that shows a lesion's inside, of the trust's blur, of filling in from around."""
FINISH = 3.0
"""Millimetres, the Gaussian that the velocity is smoothed by in the end: a rough one cannot be inverted on its grid."""
TIGHTEST = 0.2
"""Smallest Jacobian determinant that a field keeps; it is smoothed until it does."""


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


@dataclass(frozen=True)
class CounterpartQuality:
    """How far a homologous counterpart can be trusted.

    Args:
        mirror_similarity: correlation of the local structure of a volume and its mirror image, -1 to 1.
        similarity: the same of a volume and its homologous counterpart.
        trusted: share of the head's structure whose counterpart was found and not filled in from around, 0 to 1.
        largest_mm: the largest displacement, mm.
        smallest_jacobian: below 0 a place is folded; 1 is no change of volume.
    """

    mirror_similarity: float
    similarity: float
    trusted: float
    largest_mm: float
    smallest_jacobian: float


def distrust_counterpart(quality: CounterpartQuality) -> str | None:
    """Why a field cannot be trusted and the mirror is used, in one sentence with the figure, or None."""
    rules = [
        (
            quality.similarity < quality.mirror_similarity,
            f"the homologous counterpart matches less (similarity {quality.similarity:.2f}) than the mirror image "
            f"({quality.mirror_similarity:.2f})",
        ),
        (
            quality.similarity < LEAST_ALIKE,
            f"the two sides stay unlike (similarity {quality.similarity:.2f}, at least {LEAST_ALIKE:g} needed)",
        ),
        (
            quality.trusted < 0.6,
            f"only {quality.trusted:.0%} of the head has a counterpart that is alike (at least 60% needed)",
        ),
        (quality.largest_mm > 25, f"the two sides would move by {quality.largest_mm:.0f} mm (at most 25 allowed)"),
        (
            quality.smallest_jacobian < TIGHTEST / 2,
            f"the field nearly folds (Jacobian {quality.smallest_jacobian:.2f}, at least {TIGHTEST / 2:g} needed)",
        ),
    ]
    return next((reason for broken, reason in rules if broken), None)


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
        finish = [_gaussian(n, FINISH / s, fine) for n, s in zip(velocity.shape[2:], (2 * step).tolist(), strict=True)]
        velocity = _unfolded(_along_axes(velocity, finish), 2 * step)
        field = exponential(-2 * velocity, 2 * step)
        quality = _qualities(images[2], contrast, field, trust, 2 * step)
        field = _involution(resized(field, size), step)
        usable = torch.tensor([distrust_counterpart(q) is None for q in quality], device=field.device)
        return resized(field * usable.reshape(-1, 1, 1, 1, 1), volume.shape[2:]), quality


def displaced_mirror(volume: Tensor, field: Tensor, spacing: Sequence[float], mode: str = "bilinear") -> Tensor:
    """The mirror image of `(B, C, X, Y, Z)` at places displaced by `(B, 3, X, Y, Z)` mm; `nearest` for labels.

    Examples:
        >>> volume = torch.arange(3.0).reshape(1, 1, 3, 1, 1)
        >>> displaced_mirror(volume, torch.tensor([2.0, 0, 0]).reshape(1, 3, 1, 1, 1).expand(1, 3, 3, 1, 1), (2, 2, 2))
        ... # doctest: +NORMALIZE_WHITESPACE
        tensor([[[[[1.]], [[0.]], [[0.]]]]])
    """
    voxels = field.to(volume.dtype) / field.new_tensor(spacing).to(volume.dtype).reshape(3, 1, 1, 1)
    return _sample(mirror(volume), voxels, mode)


def exponential(velocity: Tensor, spacing: Tensor, squarings: int = 6) -> Tensor:
    """Displacement (mm) of the flow of a stationary velocity `(B, 3, X, Y, Z)`, by scaling and squaring."""
    voxels = velocity / spacing.reshape(3, 1, 1, 1) / 2**squarings
    for _ in range(squarings):
        voxels = voxels + _sample(voxels, voxels)
    return voxels * spacing.reshape(3, 1, 1, 1)


def jacobian_determinants(field: Tensor, spacing: Tensor) -> Tensor:
    """Local change of volume `(B, X, Y, Z)` of the map `x + field(x)`, by central differences."""
    slopes = [torch.stack(torch.gradient(field[:, i], dim=(1, 2, 3)), -1) for i in range(3)]
    return torch.linalg.det(torch.stack(slopes, -2) / spacing + torch.eye(3, device=field.device))


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation of `(B, C, X, Y, Z)` onto as many voxels, antialiased, about the same centre."""
    return _along_axes(x, [_interpolation(a, b, x) for a, b in zip(x.shape[2:], size, strict=True)])


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
        [_gaussian(n, mm / s, fine) for n, s in zip(coarse.shape[2:], grid.tolist(), strict=True)]
        for mm in (stage.reach, stage.stiffness, TRUST_REACH, FILL_REACH)
    )
    for _ in range(stage.steps):
        bent = exponential(velocity, grid, squarings=4)
        normal, pull = _normal_equations(fine, resized(bent, fine.shape[2:]), stage.pooling * step)
        normal, pull = (_along_axes(_both_halves(x).flatten(1, -4), reach) for x in _pooled(normal, pull, coarse))
        trust = _trust(broad, bent / grid.reshape(3, 1, 1, 1), normal, blur)
        velocity = _along_axes(velocity + _solved(normal, pull, 0.75 * float(grid.max())), stiff)
        known = _along_axes(trust, fill).clamp_min(1e-6)
        velocity = trust * velocity + (1 - trust) * _along_axes(trust * velocity, fill) / known
    return velocity, trust


def normalized(image: Tensor, window: int, contrast: Tensor) -> Tensor:
    """`(I - mean) / sqrt(variance + (FLAT contrast)^2)` in cubes of `window` voxels."""
    boxes = [_box(n, window, image) for n in image.shape[2:]]
    mean = _along_axes(image, boxes)
    variance = (_along_axes(image**2, boxes) - mean**2).clamp_min(0)
    return (image - mean) / (variance + (FLAT * contrast) ** 2).sqrt()


def _contrast(image: Tensor) -> Tensor:
    """The typical local variation of each channel, `(B, C, 1, 1, 1)`, whatever the share of air."""
    boxes = [_box(n, 5, image) for n in image.shape[2:]]
    mean = _along_axes(image, boxes)
    spread = (_along_axes(image**2, boxes) - mean**2).clamp_min(0).sqrt()
    total = (spread**2).sum((2, 3, 4), keepdim=True)
    return ((spread**3).sum((2, 3, 4), keepdim=True) / total.clamp_min(1e-12)).clamp_min(1e-6)


def _normal_equations(feature: Tensor, displacement: Tensor, spacing: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Newton on the difference of the two sides of the displaced feature, on one half.

    Returns:
        The weighted outer products `(B, 3, 3, X/2, Y, Z)` of the slope, per mm^2, and its products with the
        difference, `(B, 3, X/2, Y, Z)`, summed over channels.
    """
    bent = _sample(feature, displacement / spacing.reshape(3, 1, 1, 1))
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
    bent = _sample(broad, voxels)
    unlike = _along_axes(((bent - mirror(bent)) ** 2).mean(1, keepdim=True), blur)
    typical = unlike.masked_fill(~_structured(normal), torch.nan).flatten(1).nanmedian(1).values.nan_to_num(1.0)
    return 1 / (1 + (unlike / (UNLIKE * typical.clamp_min(LEAST_TYPICAL).reshape(-1, 1, 1, 1, 1))) ** SHARPNESS)


def _structured(normal: Tensor) -> Tensor:
    """Where there is something to see, `(B, 1, X, Y, Z)`: more curvature than the volume's mean."""
    trace = normal[:, ::4].sum(1, keepdim=True)
    return trace > trace.mean((2, 3, 4), keepdim=True)


def _unfolded(velocity: Tensor, spacing: Tensor) -> Tensor:
    """Smooth the velocity where its field would come near folding, until it does not."""
    smoother = [_gaussian(n, 1.0, velocity) for n in velocity.shape[2:]]
    for _ in range(10):
        tight = jacobian_determinants(exponential(-2 * velocity, spacing), spacing)[:, None] < TIGHTEST
        if not tight.any():
            break
        around = _along_axes(F.max_pool3d(tight.float(), 5, 1, 2), smoother)
        velocity = velocity + around * (_along_axes(velocity, smoother) - velocity)
    return velocity


def _involution(field: Tensor, spacing: Tensor, rounds: int = 4) -> Tensor:
    """Make the counterpart's counterpart the place itself on this grid, too, where interpolation has blurred that."""
    for _ in range(rounds):
        field = field - round_trip(field, spacing) / 2
    return field


def round_trip(field: Tensor, spacing: Tensor) -> Tensor:
    """How far from itself, `(B, 3, X, Y, Z)` in mm, the counterpart of each place's counterpart lies."""
    mirrored = mirror(field) * field.new_tensor([-1.0, 1.0, 1.0]).reshape(3, 1, 1, 1)
    return field + _sample(mirrored, field / spacing.reshape(3, 1, 1, 1))


def _qualities(
    image: Tensor, contrast: Tensor, field: Tensor, trust: Tensor, spacing: Tensor
) -> list[CounterpartQuality]:
    feature = normalized(image, STAGES[1].window, contrast)
    head = (feature**2).mean(1, keepdim=True)
    figures = [
        _similarity(feature, mirror(feature)),
        _similarity(feature, _sample(mirror(feature), field / spacing.reshape(3, 1, 1, 1))),
        (trust * head).flatten(1).sum(1) / head.flatten(1).sum(1).clamp_min(1e-6),
        field.norm(dim=1).flatten(1).amax(1),
        jacobian_determinants(field, spacing).flatten(1).amin(1),
    ]
    return [CounterpartQuality(*row) for row in torch.stack(figures, 1).tolist()]


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    product, energy = (a * b).flatten(1).sum(1), (a**2 + b**2).flatten(1).sum(1)
    return 2 * product / energy.clamp_min(1e-6)


def _sample(x: Tensor, voxels: Tensor, mode: str = "bilinear") -> Tensor:
    """`(B, C, X, Y, Z)` at its own voxels displaced by `(B, 3, X, Y, Z)`; its border goes on outside."""
    shape = x.shape[2:]
    identity = torch.eye(3, 4, dtype=x.dtype, device=x.device).expand(len(x), 3, 4)
    grid = F.affine_grid(identity, [len(x), 1, *shape], align_corners=False)
    scale = x.new_tensor([2 / n for n in shape[::-1]])
    grid = torch.addcmul(grid, voxels.flip(1).movedim(1, -1), scale)
    return F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)


def _along_axes(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply a matrix `(out, in)` along each of the last three axes."""
    for matrix in matrices:  # each product moves the next axis to the end; after three they are in order again
        x = x.movedim(-3, -1) @ matrix.mT
    return x


def _interpolation(n: int, m: int, like: Tensor) -> Tensor:
    eye = torch.eye(n, device=like.device)[None, None]
    return F.interpolate(eye, (m, n), mode="bilinear", antialias=m < n, align_corners=False)[0, 0]


def _gaussian(n: int, sigma: float, like: Tensor) -> Tensor:
    place = torch.arange(n, device=like.device, dtype=torch.float32)
    kernel = torch.exp(-(((place[:, None] - place) / sigma) ** 2) / 2)
    return kernel / kernel.sum(1, keepdim=True)


def _box(n: int, window: int, like: Tensor) -> Tensor:
    place = torch.arange(n, device=like.device)
    kernel = ((place[:, None] - place).abs() <= window // 2).float()
    return kernel / kernel.sum(1, keepdim=True)


def _multiple(value: float, of: int) -> int:
    return max(of, of * round(value / of))
