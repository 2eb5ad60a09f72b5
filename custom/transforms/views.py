"""The two augmented views of a symmetric pair that pretraining compares: quarter turns and holes, a batch at once.

Shapes: B pairs `(B, 2C, X, Y, Z)`, K holes. Views are stacked along the batch, view one first: `(2B, 2C, X, Y, Z)`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from monai.engines import PrepareBatch
from monai.utils import convert_to_tensor
from torch import Tensor

from custom.losses.dense import UNKNOWN
from custom.support.distributed import own_rows, previous_rows
from custom.support.draws import Draws
from custom.support.errors import UserError
from custom.symmetry import split_pair


def quarter_turns(volumes: Tensor, turns: Tensor) -> Tensor:
    """Rotate each volume by 0-3 quarter turns about the left-right axis (in the Y-Z plane).

    Such a rotation commutes with mirroring, so a rotated pair is the pair of the rotated brain.

    Args:
        volumes: `(B, C, X, Y, Z)` with Y = Z.
        turns: `(B,)` integers in 0-3.

    Raises:
        UserError: when Y and Z differ, so that a quarter turn would change the shape.
    """
    if volumes.shape[-1] != volumes.shape[-2]:
        raise UserError(f"quarter turns need Y = Z, got an ROI of {tuple(volumes.shape[-3:])}; change roi_size")
    turns = turns.view(-1, 1, 1, 1, 1)
    # Chosen voxel by voxel: a GPU would have to wait for a choice of volumes.
    half = torch.where(turns >= 2, volumes.rot90(2, dims=(-2, -1)), volumes)
    return torch.where(turns % 2 == 1, half.rot90(1, dims=(-2, -1)), half)


def random_cuboids(
    batch: int,
    shape: tuple[int, int, int],
    generator: torch.Generator,
    ratio: float = 0.3,
    max_side: float = 0.25,
    count: int = 64,
) -> Tensor:
    """Random cuboids per image, as 0/1 profiles along each axis, that together cover at most `ratio` of the voxels.

    Args:
        batch: number of images B.
        shape: X, Y, Z in voxels.
        generator: source of randomness; its device is that of the result.
        ratio: largest share of voxels covered.
        max_side: longest side of a cuboid, as a share of the volume's side; the shortest is a quarter of it.
        count: cuboids tried per image, K.

    Returns:
        `(B, K, X + Y + Z)`: for each cuboid, which planes along X, along Y and along Z it spans; cuboids beyond the
        share are all zero.
    """
    device = generator.device
    profiles, volume = [], torch.ones(batch, count, device=device)
    for size in shape:
        longest = max(1, int(max_side * size))
        side = torch.randint(max(1, longest // 4), longest + 1, (batch, count), generator=generator, device=device)
        start = (torch.rand(batch, count, generator=generator, device=device) * (size - side + 1)).long()
        position = torch.arange(size, device=device)
        profiles.append((position >= start[..., None]) & (position < (start + side)[..., None]))
        volume = volume * side / size
    kept = volume.cumsum(dim=1) <= ratio
    return torch.cat(profiles, dim=-1).float() * kept[..., None]


def hole_masks(cuboids: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Union of the cuboids of `random_cuboids` as a boolean mask, `(B, K, X + Y + Z)` to `(B, 1, X, Y, Z)`."""
    x, y, z = cuboids.split(shape, dim=-1)
    return torch.einsum("bkx,bky,bkz->bxyz", x, y, z).gt(0.5).unsqueeze(1)


def cut_holes(images: Tensor, cuboids: Tensor, filling: Tensor) -> Tensor:
    """Cut cuboids out of each image: every second one empty (0), the others filled from another image.

    Args:
        images: `(B, C, X, Y, Z)`.
        cuboids: of each image, from `random_cuboids`.
        filling: `(B, C, X, Y, Z)`, what each image is filled from.
    """
    shape = tuple(images.shape[2:])
    emptied = images.masked_fill(hole_masks(cuboids[:, ::2], shape), 0.0)
    return torch.where(hole_masks(cuboids[:, 1::2], shape), filling, emptied)


def random_roi(pair: Tensor, roi_size: Sequence[int], generator: torch.Generator) -> Tensor:
    """The same random ROI of every volume of a batch, no larger than the volume."""
    for axis, (size, wanted) in enumerate(zip(pair.shape[2:], roi_size, strict=True), start=2):
        room = max(0, size - wanted)
        start = torch.randint(0, room + 1, (1,), generator=generator, device=generator.device)
        if room:  # else nobody waits for a GPU's number
            pair = pair.narrow(axis, int(start), wanted)
    return pair


KEYS = ("image", "rescan", "healthy", "labels")
"""Of a batch: pairs, whether each brain is healthy; of painted brains also a second scanner's pairs, and labels."""


class PrepareViews(PrepareBatch):
    """Make two views of each symmetric pair of a batch: rotated alike in both halves, holes in the image only.

    Several processes draw the views of the whole batch, each the same ones, and keep those of their own pairs: with the
    same seed they see what one process would. The holes of an image are filled from the image before it in the batch.

    The network's input is `(2B, 2C, X, Y, Z)`; the targets are a dictionary: `image`, the rotated image without holes
    `(2B, C, X, Y, Z)`; `rotation` `(2B,)`; `healthy` `(2B,)`, where the batch has that key; of painted brains
    `tissue`, `lesion` and `alike`, `(2B, 1, X, Y, Z)`, as `custom.painting` has them; `UNKNOWN` or False in the others.

    Args:
        hole_ratio: largest share of the image's voxels cut out.
        hole_max_side: longest side of a hole, as a share of the ROI's side.
        hide_both: share of the views whose counterpart has the same holes, so that these cannot be read from it.
        rotate: whether to turn the views.
        needs_healthy: fail if the batch has no `healthy` label.
        num_samples: pairs of each case, which lie together in the batch.
        roi_size: voxels, X Y Z: take a random ROI of each batch first, where its volumes are larger; None takes them
            whole.
        seed: of the views, the same in all processes.
        repeat: draw the same views for every batch, so that validation losses can be compared over epochs; every
            process by itself.
        painter: `custom.painting.Painter`, of brains that take the place of the batch's; where its share is 1, the
            batch's own images are not looked at.

    Raises:
        ValueError: when `healthy` is needed and missing.

    References:
        Ma et al., MICCAI 2024, section 2.
    """

    def __init__(
        self,
        hole_ratio: float = 0.3,
        hole_max_side: float = 0.25,
        hide_both: float = 0.0,
        rotate: bool = True,
        needs_healthy: bool = True,
        num_samples: int = 1,
        roi_size: Sequence[int] | None = None,
        seed: int = 0,
        repeat: bool = False,
        painter: Callable[..., Any] | None = None,
    ) -> None:
        self.hole_ratio = hole_ratio
        self.hole_max_side = hole_max_side
        self.hide_both = hide_both
        self.rotate = rotate
        self.needs_healthy = needs_healthy
        self.num_samples = num_samples
        self.roi_size = roi_size
        self.seed = seed
        self.repeat = repeat
        self.painter = painter
        self.generator: torch.Generator | None = None

    def __call__(
        self, batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch = {name: self.moved(batchdata[name], device, non_blocking) for name in KEYS if name in batchdata}
        generator = self.random_generator(batch["image"].device)
        views, labels, healthy = self.brains(batch, generator)
        volumes = torch.cat(views)
        whole = torch.cat([volumes, labels.repeat(2, 1, 1, 1, 1).to(volumes)], 1)
        roi = random_roi(whole, self.roi_size or whole.shape[2:], generator)
        turns = self.own(torch.randint(0, 4, (self.whole(roi),), generator=generator, device=roi.device))
        turns = turns * int(self.rotate)
        turned = quarter_turns(roi, turns) if self.rotate else roi
        pairs, labels = turned.split([volumes.shape[1], labels.shape[1]], 1)
        image, mirrored = split_pair(pairs)
        shape = tuple(image.shape[2:])
        cuboids = random_cuboids(self.whole(pairs), shape, generator, self.hole_ratio, self.hole_max_side)
        holed = cut_holes(image, self.own(cuboids), self.filling(image))
        if self.hide_both:
            both = torch.rand(self.whole(pairs), generator=generator, device=pairs.device) < self.hide_both
            hidden = cut_holes(mirrored, self.own(cuboids), self.filling(mirrored))
            mirrored = torch.where(self.own(both).view(-1, 1, 1, 1, 1), hidden, mirrored)
        targets = {"image": image, "rotation": turns}
        if labels.shape[1]:
            tissue, lesion, alike = labels.split(1, 1)
            targets |= {"tissue": tissue.long(), "lesion": lesion, "alike": alike == 1}
        if healthy is not None:
            targets["healthy"] = healthy.bool().repeat(2)
        elif self.needs_healthy:
            raise UserError(
                "the symmetry loss needs the key 'healthy' (true or false) in every entry of the datalist; "
                "add it, or choose objective label_free, no_symmetry or reconstruction"
            )
        return torch.cat([holed, mirrored], dim=1), targets

    @staticmethod
    def moved(value: Any, device: Any, non_blocking: bool) -> Tensor:
        """A batch's tensor, list or number on the device."""
        return convert_to_tensor(value, track_meta=False).to(device, non_blocking=non_blocking)

    def brains(
        self, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Both views of the pairs, the labels of their places `(B, 0 or 3, X, Y, Z)`, and which brains are healthy.

        The views of a brain from a file are the same; those of a painted one are of two scanners.
        """
        pair, healthy = batch["image"], batch.get("healthy")
        if self.painter is None:
            return [pair, batch.get("rescan", pair)], batch.get("labels", pair[:, :0]), healthy
        draws = Draws(generator, self.whole(pair), self.own)
        painting = self.painter(draws, scanners=2)
        views, labels = painting.pairs, painting.labels
        if self.painter.share == 1:
            return views, labels, painting.healthy
        roi = random_roi(torch.cat([*views, labels.to(pair)], 1), pair.shape[2:], generator)
        *views, labels = roi.split([*[pair.shape[1]] * 2, labels.shape[1]], 1)
        taken = draws.chance(self.painter.share)
        rows = taken.view(-1, 1, 1, 1, 1)
        healthy = None if healthy is None else torch.where(taken, painting.healthy, healthy.bool())
        return [torch.where(rows, own, pair) for own in views], labels.masked_fill(~rows, UNKNOWN), healthy

    def whole(self, rows: Tensor) -> int:
        """Number of rows of all processes together."""
        return len(rows) * (1 if self.repeat else idist.get_world_size())

    def own(self, rows: Tensor) -> Tensor:
        """This process' share of the rows of all of them."""
        return rows if self.repeat else own_rows(rows, self.num_samples)

    def filling(self, images: Tensor) -> Tensor:
        """The image before each in the whole batch."""
        return images.roll(1, dims=0) if self.repeat else previous_rows(images, self.num_samples)

    def set_random_state(self, seed: int) -> None:
        """Start the views anew from another seed, as MONAI's random transforms do."""
        self.seed, self.generator = seed, None

    def random_generator(self, device: torch.device) -> torch.Generator:
        """One generator on the batch's device; started anew for every batch where views are repeated."""
        if self.generator is None or self.repeat:
            self.generator = torch.Generator(device=device).manual_seed(self.seed)
        return self.generator
