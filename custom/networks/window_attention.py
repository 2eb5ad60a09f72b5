"""Shifted-window attention of the Swin transformer, fused: the numbers of MONAI's slow path with less work.

MONAI pads a volume to whole windows, rolls it, cuts it into windows and masks what the roll has put side by side. But
the mask only cuts windows into boxes that do not see each other, and padded tokens are all alike. So here each box of
real tokens attends to itself, plus one key that stands for all padded tokens of its window: no padding, no roll, no
mask, and no score matrix kept for the backward pass.

Shapes: B volumes of N = XYZ tokens, C channels in H heads of D; a box holds n tokens and sees m keys, n or n + 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.networks.nets.swin_unetr import get_window_size
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SCORES_AT_ONCE = 2**21
"""How many scores a backward pass on a CPU holds, twice 8 MB: enough for all threads, and of the size of a cache."""

GPU_SCORES_AT_ONCE = 2**28
"""How many on a GPU: half a gigabyte in bf16."""


class Interval(NamedTuple):
    """`count` neighbouring pieces of one axis, alike: where they start, and what one piece holds."""

    start: int
    count: int
    length: int  # tokens
    padding: int  # padded tokens behind them
    place: int  # of the first token in its window


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes that lie alike in their windows, so that they share a position bias.

    Args:
        count: of boxes in the batch.
        index: `(n, n)` rows of the bias table for each token and token it sees.
        padding: `(n, p)` the same for the padded tokens it sees; None without.
    """

    count: int
    index: Tensor
    padding: Tensor | None

    @property
    def tokens(self) -> int:
        """Tokens of one box, n."""
        return len(self.index)

    def to(self, device: torch.device) -> "Boxes":
        return Boxes(self.count, self.index.to(device), None if self.padding is None else self.padding.to(device))


def intervals(size: int, window: int, shift: int) -> list[Interval]:
    """Cut one axis of `size` tokens as MONAI's windows do after padding and a roll by `shift`.

    The last rolled window wraps around: it holds the end of the axis and, separately, its first `shift` tokens.
    """
    whole, rest = divmod(size - shift, window)
    pieces = [Interval(0, 1, shift, 0, window - shift)] if shift else []
    if whole:
        pieces.append(Interval(shift, whole, window, 0, 0))
    if rest:
        stop = min(size - rest + window, -(-size // window) * window)
        pieces.append(Interval(size - rest, 1, rest, stop - size, 0))
    return pieces


def tiling(
    batch: int, size: Sequence[int], window: Sequence[int], shift: Sequence[int]
) -> tuple[np.ndarray, tuple[Boxes, ...]]:
    """Cut a batch of volumes of X, Y, Z tokens into boxes; `window` and `shift` as configured, in tokens.

    Returns:
        The batch's tokens `(B * N,)`, box after box, and the boxes in the same order.
    """
    index = relative_position_index(window)
    window, shift = get_window_size(size, window, shift)
    tokens = np.arange(batch * math.prod(size)).reshape(batch, *size)
    places = np.arange(math.prod(window)).reshape(window)
    order, boxes = [], []
    for box in product(*map(intervals, size, window, shift)):
        region = tuple(slice(piece.start, piece.start + piece.count * piece.length) for piece in box)
        pieces = tokens[:, *region].reshape(batch, *(side for piece in box for side in (piece.count, piece.length)))
        order.append(pieces.transpose(0, 1, 3, 5, 2, 4, 6).flatten())
        held = places[tuple(slice(piece.place, piece.place + piece.length) for piece in box)].flatten()
        seen = places[tuple(slice(piece.place, piece.place + piece.length + piece.padding) for piece in box)].flatten()
        rows, padding = index[held], np.setdiff1d(seen, held)
        boxes.append(
            Boxes(
                count=pieces.size // len(held),
                index=torch.from_numpy(rows[:, held]),
                padding=torch.from_numpy(rows[:, padding]) if len(padding) else None,
            )
        )
    return np.concatenate(order), tuple(boxes)


def relative_position_index(window: Sequence[int]) -> np.ndarray:
    """`WindowAttention.relative_position_index`: the row of the bias table for each two tokens of a window."""
    places = np.stack(np.unravel_index(np.arange(math.prod(window)), window), axis=-1)
    offsets = places[:, None] - places[None] + np.array(window) - 1
    return np.ravel_multi_index(tuple(np.moveaxis(offsets, -1, 0)), [2 * side - 1 for side in window])


def position_bias(table: Tensor, boxes: Boxes) -> Tensor:
    """What is added to the scores of such boxes, `(H, n, m)`, from the bias table `(rows, H)`.

    The last column is that of the padded tokens, if there are any: `log(sum(exp(bias)))` over them, since they share
    one key and one value.
    """
    bias, *padded = (
        table.t().index_select(1, index.flatten()).unflatten(1, index.shape)
        for index in (boxes.index, boxes.padding)
        if index is not None
    )
    return torch.cat([bias, *(values.logsumexp(-1, keepdim=True) for values in padded)], -1)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """`softmax(Q K^T / sqrt(D) + bias) V`, `(B, H, n, D)`, with gradients to all four; `bias` is `(H, n, m)`."""
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype)[None])
    if query.device.type == "cpu":  # torch's fused kernel for CPUs gives the bias no gradient
        return _Attend.apply(query, key, value, bias)
    return attend_in_parts(query, key, value, bias)


def attend_in_parts(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scores_at_once: int = GPU_SCORES_AT_ONCE
) -> Tensor:
    """As `attend`, with torch's kernel in both directions, some boxes at a time.

    Backward, the kernel for GPUs writes the bias' gradient for every box, before they are summed.
    """
    step = max(1, scores_at_once // bias.numel())
    mask = bias.to(query.dtype)[None]
    parts = zip(*(tensor.split(step) for tensor in (query, key, value)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part, mask) for part in parts])


class _Attend(torch.autograd.Function):
    """Attention that recomputes its scores in the backward pass, a few boxes at a time."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        # Detached, or torch takes its slow path for the bias' sake.
        out = F.scaled_dot_product_attention(query, key, value, bias.detach().to(query.dtype)[None])
        ctx.save_for_backward(query, key, value, bias, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        query, key, value, bias, out = ctx.saved_tensors
        scale = query.shape[-1] ** -0.5
        grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        grad_bias = torch.zeros_like(bias, dtype=torch.float32)
        step = max(1, SCORES_AT_ONCE // bias.numel())
        scores = torch.empty(2, step * len(bias), *bias.shape[1:])
        for parts in zip(*(t.split(step) for t in (query, key, value, out, grad, *grads)), strict=True):
            q, k, v, o, g = (t.float().flatten(0, 1) for t in parts[:5])
            probability, slope = scores[:, : len(q)]
            probability.unflatten(0, (-1, len(bias))).copy_(bias)
            torch.softmax(probability.baddbmm_(q, k.mT, alpha=scale), -1, out=probability)
            mean = -(g * o).sum(-1, keepdim=True)  # as one more column, so that the product subtracts it
            torch.bmm(torch.cat([g, mean], -1), torch.cat([v, torch.ones_like(v[..., :1])], -1).mT, out=slope)
            slope.mul_(probability)
            grad_bias += slope.unflatten(0, (-1, len(bias))).sum(0)
            q, k, g, probability, slope = (t.to(query.dtype) for t in (q * scale, k * scale, g, probability, slope))
            # Heads are narrow: with their width as rows, not columns, a product takes as little as a fifth of the time.
            for part, found in zip(parts[5:], (k.mT @ slope.mT, q.mT @ slope, g.mT @ probability), strict=True):
                part.copy_(found.mT.view(part.shape))
        return *grads, grad_bias.to(bias.dtype)
