"""The search for the midsagittal plane in a `HeadVolume`: exhaustive and coarse, then Gauss-Newton on paired points.

A plane is a unit normal `(3,)` and a point on it, `(3,)`, in world mm. Its frame `(t0, t1, t2)` is the minimal rotation
that takes the x axis to the normal; `(s, u, v)` are a point's millimetres along it.
K = candidate planes, N = point pairs, B = blocks, C = channels. All channels of a scan are searched together: what each
shows at a pair of points is one observation, so their order does not matter.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from custom.alignment.head import WORK_SPACING, HeadVolume, NoHeadError
from custom.alignment.sampling import lattice, local_normalisation, sample

FEATURE_WINDOWS = {8: 24.0, 4: 20.0, 2: 14.0}
"""Millimetres of the local normalisation's window at each spacing (mm)."""
FLAT = 0.05
"""Share of the head's contrast below which a local variation counts as none."""
NUM_PAIRS = {8: 4_000, 4: 15_000, 2: 40_000}
NUM_STEPS = {8: 12, 4: 10, 2: 12}
CONVERGED = {8: 0.2, 4: 0.05, 2: 0.002}
"""Millimetres of movement at `RADIUS` below which a level ends."""
NUM_CANDIDATES = {8: 8, 4: 3, 2: 1}
FINEST_LATTICE = 4.0
MAX_ANGLE, ANGLE_STEP = 30.0, 6.0
MAX_OFFSET = 40.0
RADIUS = 80.0
"""Millimetres from the head's centre at which an angle is weighed against an offset."""
MAX_TURN = math.radians(7)
DEPTH = 12.0
"""Millimetres inside the head's outline beyond which there is only what it contains."""
BLOCK = 16.0
BLOCKS = (6, 15, 12)
"""Millimetres of a block's side, and blocks along one half of the work volume."""
POINT_SCALE, BLOCK_SCALE = 4.0, 4.0
"""Multiples of the median residual beyond which a point, and a whole block, lose their weight."""


@dataclass(frozen=True)
class Level:
    """One resolution of the search: the feature and its gradient on a grid of `spacing` mm.

    Args:
        channels: `(4C + 1, Z, Y, X)`: C features, their derivatives along x, y, z per mm (3 times C), known. The axes
            are reversed because `grid_sample` takes x first.
        head: `(1, Z, Y, X)` foreground.
        center: `(3,)` world mm of the grid's centre.
        spacing: mm.
    """

    channels: Tensor
    head: Tensor
    center: Tensor
    spacing: float

    @property
    def num_channels(self) -> int:
        return len(self.channels) // 4

    def seen(self, head: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The features `(C, ..., N)`, known and a mask `(1, Z, Y, X)` at world points `(..., 3, N)`."""
        volume = torch.cat([self.channels[: self.num_channels], self.channels[-1:], head])
        values = sample(volume, self.center, self.spacing, points)
        return values[:-2], values[-2], values[-1]


@dataclass(frozen=True)
class Pairs:
    """What the two sides of K candidate planes show at N paired points, channel after channel: M = C N observations.

    Args:
        residual: `(K, M)` difference of the feature between the sides.
        jacobian: `(K, 3, M)` its derivative by the normal's two angles (rad) and the offset (mm).
        known: `(K, M)`, 1 where both sides are inside the field of view.
        block: `(K, M)` that each belongs to.
    """

    residual: Tensor
    jacobian: Tensor
    known: Tensor
    block: Tensor


def frame(normal: Tensor) -> Tensor:
    """The minimal rotation that takes the x axis to each normal: `(..., 3)` to `(..., 3, 3)`, columns t0, t1, t2."""
    x, y, z = normal.unbind(-1)
    k = 1 / (1 + x)
    rows = [x, -y, -z, y, 1 - y * y * k, -y * z * k, z, -y * z * k, 1 - z * z * k]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def levels(volume: HeadVolume) -> dict[int, Level]:
    """The work volume at 8, 4 and 2 mm."""
    pyramid = {}
    weighted, known, head = volume.image * volume.known, volume.known[None], volume.head[None]
    flat = FLAT * volume.contrast[:, None, None, None]
    for spacing in (2, 4, 8):
        if spacing > WORK_SPACING:
            weighted, known, head = (F.avg_pool3d(x[None], 2)[0] for x in (weighted, known, head))
        sure = (known > 0.5).to(known)
        image = weighted / known.clamp_min(1e-6) * sure
        feature = local_normalisation(image, sure, FEATURE_WINDOWS[spacing] / spacing, flat)
        channels = torch.cat([feature, *torch.gradient(feature, spacing=float(spacing), dim=(1, 2, 3)), sure])
        reverse = [x.permute(0, 3, 2, 1).contiguous() for x in (channels, head)]
        pyramid[spacing] = Level(*reverse, volume.center.float(), float(spacing))
    return pyramid


def coarse_search(level: Level) -> tuple[Tensor, Tensor]:
    """Score every plane of a coarse grid of yaw, roll and offset.

    Returns:
        normals `(K, 3)` and points on the planes `(K, 3)` of the best local maxima, best first.
    """
    device, spacing = level.head.device, level.spacing
    angles = torch.arange(-MAX_ANGLE, MAX_ANGLE + 1e-3, ANGLE_STEP, device=device).deg2rad().tan()
    yaw, roll = torch.meshgrid(angles, angles, indexing="ij")
    normals = F.normalize(torch.stack([torch.ones_like(yaw), yaw, roll], -1), dim=-1)  # A A 3
    depth, height, width = level.head.shape[1:]
    local = lattice((width, height, depth), spacing, device)
    points = level.center[:, None] + frame(normals).flatten(0, 1) @ local
    feature, known, head = level.seen(level.head, points)
    feature = feature.unflatten(-1, (width, -1)).permute(1, 2, 0, 3).flatten(2)  # AA S CN
    known, head = (x.unflatten(-1, (width, -1)).repeat(1, 1, level.num_channels) for x in (known, head))
    score = _offset_scores(feature, known, head)  # AA, offsets
    middle, reach = width - 1, int(2 * MAX_OFFSET / spacing)
    score = score[:, middle - reach : middle + reach + 1].unflatten(0, yaw.shape)
    offsets = torch.arange(-reach, reach + 1, device=device) * spacing / 2

    peak = F.max_pool3d(score[None, None], 3, 1, 1)[0, 0] == score
    best = torch.where(peak, score, -1).flatten().topk(NUM_CANDIDATES[8]).indices
    row, column, offset = torch.unravel_index(best, score.shape)
    normal = normals[row, column]
    return normal, level.center + offsets[offset, None] * normal


def _offset_scores(feature: Tensor, known: Tensor, head: Tensor) -> Tensor:
    """Self-correlation of `(R, S, N)` sagittal slices about every offset along S: `(R, 2S - 1)`.

    The product of two slices i, j belongs to the plane halfway between them: sum a Gram matrix's anti-diagonals i + j.
    """
    known, feature = (known > 0.99).to(feature), feature * head
    product = _antidiagonals(feature @ feature.mT)
    energy = _antidiagonals(feature**2 @ known.mT).clamp_min(1e-6)
    both = _antidiagonals(head @ head.mT)
    seen = _antidiagonals(head @ known.mT).clamp_min(1e-6)
    total = head.sum((1, 2))[:, None].clamp_min(1e-6)
    return (product / energy + both / seen) / 2 * (seen / total)


def _antidiagonals(gram: Tensor) -> Tensor:
    n = gram.shape[-1]
    index = torch.arange(n, device=gram.device)
    out = gram.new_zeros(gram.shape[0], 2 * n - 1)
    return out.index_add(1, (index[:, None] + index).flatten(), gram.flatten(1))


def paired_points(level: Level, normal: Tensor, point: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Up to `count` points of one side, spread over the head, for each plane `(K, 3)`, `(K, 3)`.

    Returns:
        points `(K, 3, N)` in the planes' frames, mm, and the block `(K, N)` of `BLOCK` mm that each belongs to.

    Raises:
        NoHeadError: when a plane has nothing beside it.
    """
    step = max(level.spacing, FINEST_LATTICE)
    size = [round(n * level.spacing / step) for n in level.head.shape[:0:-1]]
    local = lattice(size, step, normal.device)
    local = local[:, local[0] > 0]
    head = sample(
        level.head, level.center, level.spacing, point[:, :, None] + frame(normal) @ _both_sides(local)[:, None]
    )[0]
    inside = head.sum(0) > 0.5
    if not inside.any(1).all():
        raise NoHeadError("no head found: too little of it lies beside its plane to compare two sides")
    count = min(count, int(inside.sum(1).amax()))
    points = torch.stack([local[:, _spread(candidate.nonzero().flatten(), count)] for candidate in inside])
    cell = ((points - local.amin(1)[:, None]) / BLOCK).long()
    return points, (cell[:, 0] * BLOCKS[1] + cell[:, 1]) * BLOCKS[2] + cell[:, 2]


def _spread(indices: Tensor, count: int) -> Tensor:
    return indices[torch.linspace(0, len(indices) - 1, count, device=indices.device).long()]


def _both_sides(points: Tensor) -> Tensor:
    """Points `(..., 3, N)` and their reflections: `(2, ..., 3, N)`."""
    return torch.stack([points, points * points.new_tensor([[-1], [1], [1]])])


def compare(level: Level, points: Tensor, block: Tensor, normal: Tensor, point: Tensor) -> Pairs:
    """Sample the features at points `(K, 3, N)`, of blocks `(K, N)`, and at their reflections about K planes."""
    axes, number = frame(normal), level.num_channels
    seen = sample(level.channels, level.center, level.spacing, point[:, :, None] + axes @ _both_sides(points))
    slope = axes.mT @ seen[number:-1].unflatten(0, (3, number)).permute(1, 2, 3, 0, 4)  # C 2 K 3 N, along t0, t1, t2
    across = slope[:, 0, :, :1] - slope[:, 1, :, :1]
    along = slope[:, 0, :, 1:] + slope[:, 1, :, 1:]
    # turning the normal by a towards t1 moves (s, u) to (s - a u, u + a s); a shift moves both sides along t0
    turn = along * points[:, :1] - across * points[:, 1:]
    return Pairs(
        residual=(seen[:number, 0] - seen[:number, 1]).movedim(0, 1).flatten(1),
        jacobian=torch.cat([turn, across], 2).permute(1, 2, 0, 3).flatten(2),
        known=(seen[-1].amin(0) > 0.98).to(points).repeat(1, number),
        block=block.repeat(1, number),
    )


def block_sums(values: Tensor, block: Tensor) -> Tensor:
    """Sum `(K, V, N)` values within blocks: `(K, V, B)`."""
    out = values.new_zeros(*values.shape[:2], math.prod(BLOCKS))
    return out.scatter_add(2, block[:, None].expand_as(values), values)


def robust_weights(pairs: Pairs) -> Tensor:
    """Geman-McClure weights `(K, M)`, per point and per block: a lesion is many outliers in one place."""
    scale = POINT_SCALE * _masked_median(pairs.residual.abs()[:, ::4], pairs.known[:, ::4] > 0)
    squared = (pairs.residual / scale[:, None]) ** 2
    weight = pairs.known / (1 + squared) ** 2
    count, energy = block_sums(torch.stack([pairs.known, squared.clamp_max(9) * pairs.known], 1), pairs.block).unbind(1)
    energy = energy / count.clamp_min(1)
    typical = _masked_median(energy, count > count.amax(1, keepdim=True) / 4)
    trust = 1 / (1 + (energy / (BLOCK_SCALE * typical[:, None])) ** 2) ** 2
    return weight * trust.gather(1, pairs.block)


def _masked_median(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, torch.nan).nanmedian(-1).values.nan_to_num(1.0).clamp_min(1e-6)


def refine(level: Level, normal: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Newton on paired points, all candidates `(K, 3)`, `(K, 3)` together."""
    points, block = paired_points(level, normal, point, NUM_PAIRS[int(level.spacing)])
    for _ in range(NUM_STEPS[int(level.spacing)]):
        pairs = compare(level, points, block, normal, point)
        step = _gauss_newton_step(pairs, robust_weights(pairs), level.spacing)
        normal, point = moved(normal, point, step)
        if (step[:, :2].norm(dim=1) * RADIUS + step[:, 2].abs()).max() < CONVERGED[int(level.spacing)]:
            break
    return normal, point


def _gauss_newton_step(pairs: Pairs, weight: Tensor, spacing: float) -> Tensor:
    weighted = pairs.jacobian * weight[:, None]
    hessian = weighted @ pairs.jacobian.mT
    scale = hessian.new_tensor([RADIUS, RADIUS, 1.0]) ** 2
    damping = torch.diag_embed(1e-3 * scale * hessian[:, 2, 2, None] + 1e-6 * scale)
    step = -torch.linalg.solve(hessian + damping, weighted @ pairs.residual[..., None])[..., 0]
    limit = step.new_tensor([MAX_TURN, MAX_TURN, 1.5 * spacing])
    return step * (limit / step.abs().clamp_min(1e-9)).amin(1, keepdim=True).clamp_max(1)


def moved(normal: Tensor, point: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Turn planes about their points and shift them by steps `(K, 3)` (rad, rad, mm)."""
    turn = torch.cat([torch.ones_like(step[:, :1]), step[:, :2]], -1)
    turned = (frame(normal) @ F.normalize(turn, dim=-1)[..., None])[..., 0]
    return turned, point + step[:, 2:] * turned


def similarity_and_overlap(level: Level, normal: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation of the two sides' features `(K,)` and the share `(K,)` of the head that has head opposite."""
    points, _ = paired_points(level, normal, point, NUM_PAIRS[8])
    sides = point[:, :, None] + frame(normal) @ _both_sides(points)
    feature, known, head = level.seen(level.head, sides)
    known = (known.amin(0) > 0.98).to(known)
    left, right = (feature * known).unbind(1)
    similarity = 2 * (left * right).sum((0, 2)) / (left**2 + right**2).sum((0, 2)).clamp_min(1e-6)
    return similarity, 2 * (head.amin(0) * known).sum(1) / head.sum((0, 2)).clamp_min(1e-6)


def inner_similarity(level: Level, normal: Tensor, point: Tensor) -> Tensor:
    """Correlation `(K,)` of the two sides' features deeper than `DEPTH` inside the head, where they match best.

    There is anatomy there and no outline: a bottle is as symmetric as a head outside, and empty or different inside.
    Disease with mass effect may change most of an inside, hence the upper quartile over blocks.
    """
    width = 2 * round(DEPTH / level.spacing) + 1
    inner = 1 - F.max_pool3d((level.head < 0.5).to(level.head)[None], width, 1, width // 2)[0]
    points, block = paired_points(level, normal, point, NUM_PAIRS[4])
    sides = point[:, :, None] + frame(normal) @ _both_sides(points)
    feature, known, deep = level.seen(inner, sides)
    inside = ((known.amin(0) > 0.98) & (deep.amin(0) > 0.5)).to(feature)
    left, right = (feature * inside).unbind(1)
    sums = block_sums(torch.stack([(left * right).sum(0), (left**2 + right**2).sum(0) / 2, inside], 1), block)
    product, energy, count = sums.unbind(1)
    full = count > count.amax(1, keepdim=True) / 4
    similarity = (product / energy.clamp_min(1e-6)).masked_fill(~full, torch.nan)
    return similarity.nanquantile(0.75, dim=1).nan_to_num(0.0)
