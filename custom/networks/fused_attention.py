"""Attention of all windows of a volume at once, on a GPU, with gradients: the launches of `custom.networks.window_kernels`.

Shapes: N tokens, C channels in H heads of D; the bias table is `(rows, H)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from custom.networks.window_tables import WindowTables


class Tiles(NamedTuple):
    """How a kernel is launched: the tile of one program, its warps, and the stages of its loads."""

    rows: int
    keys: int
    warps: int
    stages: int


LAUNCHES = {
    "forward": Tiles(64, 64, 4, 2),
    "grad_queries": Tiles(64, 64, 4, 2),
    "grad_keys": Tiles(64, 64, 4, 1),
    "grad_bias": Tiles(64, 64, 4, 2),
}
"""Of each kernel; fitted to an H200 and 16 channels per head by `benchmarks.attention`."""


def window_attention(qkv: Tensor, padding: Tensor, table: Tensor, tables: WindowTables) -> Tensor:
    """Attention of each box to itself, in the volume's own order of tokens.

    Args:
        qkv: `(N, 3C)` queries, keys and values of all tokens; half or single precision.
        padding: `(3C,)` those of a padded token, the bias of the layer that makes `qkv`.
        table: `(rows, H)` position bias.
        tables: where the boxes lie.

    Returns:
        `(N, C)`, with gradients to the first three.
    """
    return _WindowAttention.apply(qkv, padding, table, tables)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, padding: Tensor, table: Tensor, tables: WindowTables) -> Tensor:
        qkv, heads = qkv.contiguous(), table.shape[1]
        bias = _expanded(table.contiguous(), tables, qkv)
        out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        lse = qkv.new_empty(heads, tables.tokens, dtype=torch.float32)
        tiles, launch = _launch("forward", qkv, padding, bias, tables)
        count = -(-tables.most_tokens // tiles.rows)
        launch((len(tables.boxes) * heads * count,), out, lse, **_sizes(bias, tables, heads, count))
        ctx.save_for_backward(qkv, padding, bias, out, lse, table)
        ctx.tables = tables
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None]:
        qkv, padding, bias, out, lse, table = ctx.saved_tensors
        tables, heads, grad = ctx.tables, table.shape[1], grad.contiguous()
        grad_qkv, delta = torch.empty_like(qkv), torch.empty_like(lse)

        tiles, launch = _launch("grad_queries", qkv, padding, bias, tables)
        count = -(-tables.most_tokens // tiles.rows)
        grid = (len(tables.boxes) * heads * count,)
        launch(grid, out, lse, grad, delta, grad_qkv, **_sizes(bias, tables, heads, count))

        tiles, launch = _launch("grad_keys", qkv, padding, bias, tables)
        count = -(-tables.most_keys // tiles.keys)
        pads = lse.new_zeros(len(tables.boxes) * count if tables.padded else 1, qkv.shape[1])
        grid = (len(tables.boxes) * heads * count,)
        launch(grid, lse, grad, delta, grad_qkv, pads, **_sizes(bias, tables, heads, count))

        tiles, launch = _launch("grad_bias", qkv, padding, bias, tables)
        count = -(-tables.most_keys // tiles.keys)
        parts = lse.new_empty(tables.parts, *bias.shape)
        grid = (heads * count * -(-tables.most_tokens // tiles.rows), len(tables.groups))
        launch(grid, lse, grad, delta, tables.groups, parts, **_sizes(bias, tables, heads, count))
        grad_padding = pads.sum(0).to(padding.dtype) if tables.padded else None
        return grad_qkv, grad_padding, _collected(parts, table, tables), None


def _launch(
    name: str, qkv: Tensor, padding: Tensor, bias: Tensor, tables: WindowTables
) -> tuple[Tiles, Callable[..., None]]:
    """How a kernel is tiled, and a function of its grid and of what it does not share with the others."""
    from custom.networks import window_kernels

    kernel, tiles = getattr(window_kernels, name), LAUNCHES[name]
    width = qkv.shape[1] // 3 // len(bias)
    constants = {
        "D": width,
        "WIDTH": max(16, 1 << (width - 1).bit_length()),
        "ROWS": tiles.rows,
        "KEYS": tiles.keys,
        "PADDED": tables.padded,
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3",
    }
    scale = width**-0.5

    def launch(grid: tuple[int, ...], *others: Tensor, **sizes: int) -> None:
        shared = (qkv, padding, bias, tables.boxes, tables.places)
        kernel[grid](
            *shared, *others, scale=scale, **sizes, **constants, num_warps=tiles.warps, num_stages=tiles.stages
        )

    return tiles, launch


def _sizes(bias: Tensor, tables: WindowTables, heads: int, tiles: int) -> dict[str, int]:
    return {"size": bias.shape[1], "tokens": tables.tokens, "heads": heads, "tiles": tiles}


def _expanded(table: Tensor, tables: WindowTables, qkv: Tensor) -> Tensor:
    """The bias of all kinds of boxes, `(H, entries)`, as the kernels take it."""
    from custom.networks.window_kernels import expand_bias

    heads, size = table.shape[1], len(tables.index)
    scale = (qkv.shape[1] // 3 // heads) ** -0.5
    bias = qkv.new_empty(heads, size)
    expand_bias[(-(-size // 2048), heads)](table, tables.index, bias, size, heads, scale, BLOCK=2048)
    return bias


def _collected(parts: Tensor, table: Tensor, tables: WindowTables) -> Tensor:
    """The gradient of the bias table, from the sums of each part."""
    from custom.networks.window_kernels import sum_bias

    grad = torch.empty_like(table, memory_format=torch.contiguous_format)
    heads, size = table.shape[1], parts.shape[2]
    grid = (-(-len(table) // 16), heads)
    sum_bias[grid](parts, tables.order, tables.starts, grad, size, *table.shape, len(parts), ROWS=16, BLOCK=32)
    return grad
