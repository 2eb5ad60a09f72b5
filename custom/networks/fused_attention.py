"""Attention of all windows of a volume at once, on a GPU, with gradients: the launches of `window_kernels`.

Shapes: N tokens, C channels in H heads of D; the bias table is `(rows, H)`.
"""

import os
import warnings
from functools import lru_cache
from importlib.util import find_spec
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
    "forward": Tiles(64, 32, 4, 1),
    "grad_queries": Tiles(64, 32, 4, 1),
    "grad_keys": Tiles(64, 64, 4, 1),
    "grad_bias": Tiles(128, 32, 4, 1),
}
"""Of each kernel, the fastest of those that `benchmarks.attention` measured on an H100 at 16 channels a head."""

MOST_UNITS = 65535
"""The largest third axis of a launch."""


def in_one_launch(tokens: Tensor) -> bool:
    """Whether the kernels can take tokens where they lie; an exporter's operators are for any machine."""
    exporting = torch.jit.is_tracing() or torch.compiler.is_exporting()
    return not exporting and tokens.dtype != torch.float64 and _runs_kernels(tokens.device)


@lru_cache
def runs_kernels(device: torch.device) -> bool:
    """Whether Triton is there and its kernels run on a device: a GPU, or any under `TRITON_INTERPRET=1`."""
    if device.type != "cuda" and not (os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton")):
        return False
    try:
        from custom.networks.window_kernels import probe

        place = torch.empty(1, device=device)
        with torch.cuda.device_of(place):
            probe[(1,)](place)
    except Exception as error:  # no Triton, no C compiler for it, a GPU that it does not know
        warnings.warn(f"Triton's kernels do not run on {device}, so attention is slower there: {error}", stacklevel=2)
        return False
    return True


_runs_kernels = torch.compiler.disable(runs_kernels)


@torch.compiler.disable
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
        qkv = qkv.contiguous()
        bias = expanded_bias(table.contiguous(), tables, qkv)
        out, lse = forward(Inputs(qkv, padding, bias, tables))
        ctx.save_for_backward(qkv, padding, bias, out, lse, table)
        ctx.tables = tables
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None]:
        qkv, padding, bias, out, lse, table = ctx.saved_tensors
        inputs, grad, grad_qkv = Inputs(qkv, padding, bias, ctx.tables), grad.contiguous(), torch.empty_like(qkv)
        delta = grad_queries(inputs, out, lse, grad, grad_qkv)
        grad_padding = grad_keys(inputs, lse, grad, delta, grad_qkv)
        grad_table = summed_bias(grad_bias(inputs, lse, grad, delta), table, ctx.tables)
        return grad_qkv, None if grad_padding is None else grad_padding.to(padding.dtype), grad_table, None


class Inputs(NamedTuple):
    """What all kernels read: the product, a padded token's, the bias of all kinds `(H, entries)`, and the tables."""

    qkv: Tensor
    padding: Tensor
    bias: Tensor
    tables: WindowTables

    @property
    def heads(self) -> int:
        return len(self.bias)

    @property
    def width(self) -> int:
        """Channels of a head, D."""
        return self.qkv.shape[1] // 3 // self.heads


def forward(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The attention `(N, C)`, and the logarithm of the sum of each row, `(H, N)`."""
    out = inputs.qkv.new_empty(len(inputs.qkv), inputs.heads * inputs.width)
    lse = inputs.qkv.new_empty(inputs.heads, len(inputs.qkv), dtype=torch.float32)
    _launch("forward", inputs, (tiles_of_rows("forward", inputs), inputs.heads), len(inputs.tables.boxes), out, lse)
    return out, lse


def grad_queries(inputs: Inputs, out: Tensor, lse: Tensor, grad: Tensor, grad_qkv: Tensor) -> Tensor:
    """Writes the queries' third of `grad_qkv`; what it returns the other kernels need, `(H, N)`."""
    delta = torch.empty_like(lse)
    grid = tiles_of_rows("grad_queries", inputs), inputs.heads
    _launch("grad_queries", inputs, grid, len(inputs.tables.boxes), out, lse, grad, delta, grad_qkv)
    return delta


def grad_keys(inputs: Inputs, lse: Tensor, grad: Tensor, delta: Tensor, grad_qkv: Tensor) -> Tensor | None:
    """Writes the keys' and values' thirds of `grad_qkv`; returns the gradient of `padding`, if any box sees it."""
    tables, tiles = inputs.tables, tiles_of_keys("grad_keys", inputs)
    sums = lse.new_zeros(len(tables.boxes) if tables.padded else 1, tiles, grad_qkv.shape[1])
    _launch("grad_keys", inputs, (tiles, inputs.heads), len(tables.boxes), lse, grad, delta, grad_qkv, sums)
    return sums.sum((0, 1)) if tables.padded else None


def grad_bias(inputs: Inputs, lse: Tensor, grad: Tensor, delta: Tensor) -> Tensor:
    """The bias' gradient, `(parts, H, entries)`, of which those of the bias table are written."""
    parts = lse.new_empty(inputs.tables.parts, *inputs.bias.shape)
    grid = inputs.heads * tiles_of_keys("grad_bias", inputs), tiles_of_rows("grad_bias", inputs)
    _launch("grad_bias", inputs, grid, len(inputs.tables.groups), lse, grad, delta, inputs.tables.groups, parts)
    return parts


def tiles_of(kernel: str, inputs: Inputs) -> Tiles:
    """In single precision with fewer keys: a vector takes twice the shared memory."""
    tiles = LAUNCHES[kernel]
    return tiles if inputs.qkv.element_size() < 4 else tiles._replace(keys=min(tiles.keys, 32))


def tiles_of_rows(kernel: str, inputs: Inputs) -> int:
    """Along the tokens of the largest box."""
    return -(-inputs.tables.most_tokens // tiles_of(kernel, inputs).rows)


def tiles_of_keys(kernel: str, inputs: Inputs) -> int:
    """Along the keys of the largest box."""
    return -(-inputs.tables.most_keys // tiles_of(kernel, inputs).keys)


def _launch(kernel: str, inputs: Inputs, grid: tuple[int, int], units: int, *others: Tensor) -> None:
    """Run a kernel on each of so many boxes, or groups of them, in `grid` programs each."""
    from custom.networks import window_kernels

    tiles, width = tiles_of(kernel, inputs), inputs.width
    constants = {
        "D": width,
        "WIDTH": max(16, 1 << (width - 1).bit_length()),
        "ROWS": tiles.rows,
        "KEYS": tiles.keys,
        "PADDED": inputs.tables.padded,
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3",
    }
    with torch.cuda.device_of(inputs.qkv):  # Triton launches on the current device, whatever holds the tensors
        for start in range(0, units, MOST_UNITS):
            getattr(window_kernels, kernel)[*grid, min(units - start, MOST_UNITS)](
                *(inputs.qkv, inputs.padding, inputs.bias, inputs.tables.boxes, inputs.tables.places, *others),
                *(inputs.bias.shape[1], len(inputs.qkv), inputs.heads, start, width**-0.5),
                **constants,
                num_warps=tiles.warps,
                num_stages=tiles.stages,
            )


def expanded_bias(table: Tensor, tables: WindowTables, qkv: Tensor) -> Tensor:
    """The bias of all kinds of boxes, `(H, entries)`, as the kernels take it."""
    from custom.networks.window_kernels import expand_bias

    heads, size = table.shape[1], len(tables.index)
    scale = (qkv.shape[1] // 3 // heads) ** -0.5
    bias = qkv.new_empty(heads, size)
    with torch.cuda.device_of(table):
        expand_bias[(-(-size // 2048), heads)](table, tables.index, bias, size, heads, scale, BLOCK=2048)
    return bias


def summed_bias(parts: Tensor, table: Tensor, tables: WindowTables) -> Tensor:
    """The gradient of the bias table, from the sums of each part."""
    from custom.networks.window_kernels import sum_bias

    grad = torch.empty_like(table, memory_format=torch.contiguous_format)
    heads, size = table.shape[1], parts.shape[2]
    grid = (-(-len(table) // 16), heads)
    with torch.cuda.device_of(table):
        sum_bias[grid](parts, tables.order, tables.starts, grad, size, *table.shape, len(parts), ROWS=16, BLOCK=32)
    return grad
