"""Where the boxes of a volume's windows lie, as tables on the device, for kernels that take all boxes in one launch.

A box holds n tokens and sees m keys, the last m - n of them padded tokens of its window; boxes of a kind share a bias.
The bias of all kinds lies in one row of entries, rows and keys of each kind rounded up to whole tiles.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from custom.networks.window_attention import tiling

TILE = 128
"""Rows and keys of the largest tile of a kernel."""

NO_KEY, NO_ROW = -1, -2
"""In place of a row of the bias table: behind the last key of a kind, and behind its last row."""

PROGRAMS = 2048
"""About how many programs share the bias' gradient: some waves on the largest GPU."""


class Kind(NamedTuple):
    """Boxes that lie alike in their windows."""

    first: np.ndarray  # `(boxes,)` the first token of each
    places: np.ndarray  # `(n,)` its tokens, counted from the first
    index: np.ndarray  # `(n, m)` row of the bias table for each token and key


@dataclass(frozen=True, eq=False)
class WindowTables:
    """What the kernels of `custom.networks.window_kernels` read, whole numbers of 32 bits.

    Args:
        boxes: `(boxes, 8)`, fields as described there; those with the most work first.
        places: tokens of each kind, counted from its box's first.
        index: `(entries,)` row of the bias table of each entry of the bias; `NO_KEY`, `NO_ROW`.
        groups: `(groups, 3)` first box, boxes and part of each sum of the bias' gradient.
        order: entries that have a row of the bias table, by that row.
        starts: `(rows + 1,)` where in `order` those of each row start.
        tokens: N of the batch.
        most_tokens: the largest n.
        most_keys: the largest m.
        parts: into which each kind's boxes are split for their bias' gradient.
        padded: whether any box sees padded tokens.
    """

    boxes: Tensor
    places: Tensor
    index: Tensor
    groups: Tensor
    order: Tensor
    starts: Tensor
    tokens: int
    most_tokens: int
    most_keys: int
    parts: int
    padded: bool

    def to(self, device: torch.device) -> "WindowTables":
        values = (getattr(self, field.name) for field in fields(self))
        return WindowTables(*(v.to(device) if isinstance(v, Tensor) else v for v in values))


def kinds(batch: int, size: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> list[Kind]:
    """Boxes of a batch of volumes of X, Y, Z tokens, those with the most scores first."""
    order, tiles = tiling(batch, size, window, shift)
    tokens = np.split(order, np.cumsum([boxes.count * boxes.tokens for boxes in tiles])[:-1])
    found = []
    for own, boxes in zip(tokens, tiles, strict=True):
        own = own.reshape(boxes.count, boxes.tokens)
        seen = [index.numpy() for index in (boxes.index, boxes.padding) if index is not None]
        found.append(Kind(own[:, 0], own[0] - own[0, 0], np.concatenate(seen, 1)))
    return sorted(found, key=lambda kind: -kind.index.size)


def window_tables(
    batch: int, size: Sequence[int], window: Sequence[int], shift: Sequence[int], heads: int
) -> WindowTables:
    """Tables of a batch of volumes of X, Y, Z tokens; `window` and `shift` as configured, in tokens."""
    found = kinds(batch, size, window, shift)
    shapes = [kind.index.shape for kind in found]
    tiles = sum(-(-n // 64) * -(-m // 64) for n, m in shapes)
    parts = min(max(1, round(PROGRAMS / (tiles * heads))), max(len(kind.first) for kind in found))
    index = np.concatenate([_whole_tiles(kind.index).ravel() for kind in found])
    order = np.argsort(index, kind="stable")[np.count_nonzero(index < 0) :]
    rows = np.prod([2 * side - 1 for side in window])
    arrays = (
        np.concatenate(list(_boxes(found))),
        np.concatenate([kind.places for kind in found]),
        index,
        np.concatenate(list(_groups(found, parts))),
        order,
        np.searchsorted(index[order], np.arange(rows + 1)),
    )
    return WindowTables(
        *(torch.from_numpy(array.astype(np.int32)) for array in arrays),
        tokens=sum(kind.first.size * kind.places.size for kind in found),
        most_tokens=max(n for n, _ in shapes),
        most_keys=max(m for _, m in shapes),
        parts=parts,
        padded=any(m > n for n, m in shapes),
    )


@torch.compiler.disable
@lru_cache(maxsize=64)
def kept_tables(
    batch: int, size: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...], heads: int, device: torch.device
) -> WindowTables:
    """`window_tables` on a device, made once."""
    return window_tables(batch, size, window, shift, heads).to(device)


def _rounded(count: int) -> int:
    return -(-count // TILE) * TILE


def _whole_tiles(index: np.ndarray) -> np.ndarray:
    n, m = index.shape
    tiles = np.full((_rounded(n), _rounded(m)), NO_KEY)
    tiles[n:, :m] = NO_ROW
    tiles[:n, :m] = index
    return tiles


def _boxes(found: Sequence[Kind]) -> Iterator[np.ndarray]:
    """Rows of `WindowTables.boxes`, kind by kind."""
    places = bias = line = 0
    for kind in found:
        n, m = kind.index.shape
        rows = np.zeros((len(kind.first), 8), np.int64)
        rows[:, 0], rows[:, 6] = kind.first, line + n * np.arange(len(kind.first))
        rows[:, 1:6] = n, m, places, bias, _rounded(m)
        yield rows
        places, bias, line = places + n, bias + _rounded(n) * _rounded(m), line + rows[:, 1].sum()


def _groups(found: Sequence[Kind], parts: int) -> Iterator[np.ndarray]:
    """Rows of `WindowTables.groups`, kind by kind; a group may have no boxes."""
    first = 0
    for kind in found:
        cuts = first + np.arange(parts + 1) * len(kind.first) // parts
        yield np.stack([cuts[:-1], np.diff(cuts), np.arange(parts)], 1)
        first += len(kind.first)
