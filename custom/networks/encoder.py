"""The Swin encoder of `monai.networks.nets.SwinTransformer`, with fused window attention and its parameters' names.

Shapes: B volumes of N = XYZ tokens with C channels. On a GPU the attention takes each token where it lies. Elsewhere
tokens are re-ordered once per block, so that the boxes of its attention lie one after another; everything else in a
block does not care about their order.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from monai.networks.nets.swin_unetr import BasicLayer, SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from custom.networks.fused_attention import in_one_launch, window_attention
from custom.networks.window_attention import Boxes, attend, position_bias, tiling
from custom.networks.window_tables import WindowTables, kept_tables

_CORNERS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
"""Order in which MONAI's patch merging joins the eight tokens of a cube."""


class SwinEncoder(nn.Module):
    """A MONAI `SwinTransformer` that computes the same features, faster and in less memory, from the same parameters.

    The index of the relative positions follows from the window size and is not saved; checkpoints that hold it load.

    Args:
        swin: takes over its parameters; 3D, without dropout, with MONAI's default patch merging.

    Shape:
        - image: `(B, C, X, Y, Z)`, X, Y, Z multiples of 32
        - output: five features, `(B, 2^i x embed_dim, X/2^(i+1), ...)`, in channels-last memory
    """

    def __init__(self, swin: SwinTransformer) -> None:
        super().__init__()
        self.patch_size, self.window_size, self.embed_dim = swin.patch_size, swin.window_size, swin.embed_dim
        self.patch_embed = swin.patch_embed
        for name in ("layers1", "layers2", "layers3", "layers4"):
            self.add_module(name, nn.ModuleList(map(FusedStage, getattr(swin, name))))

    def forward(self, image: Tensor, normalize: bool = True) -> list[Tensor]:
        hidden = self.hidden(image)
        return [self.normalized(tokens) if normalize else _channels_first(tokens) for tokens in hidden]

    def hidden(self, image: Tensor) -> list[Tensor]:
        """Features of each scale before their normalisation, `(B, X, Y, Z, C)`."""
        tokens = [self.patch_embed(image).permute(0, 2, 3, 4, 1)]
        for stage in (self.layers1, self.layers2, self.layers3, self.layers4):
            tokens.append(stage[0](tokens[-1]))
        return tokens

    @staticmethod
    def normalized(tokens: Tensor) -> Tensor:
        """Features as the decoders take them: `(B, X, Y, Z, C)` to `(B, C, X, Y, Z)`, layer-normalised."""
        return _channels_first(layer_norm(tokens))


class FusedStage(nn.Module):
    """One stage, `monai.networks.nets.swin_unetr.BasicLayer`: blocks of attention, then patch merging.

    Shape:
        - tokens: `(B, X, Y, Z, C)` with X, Y, Z even; output: `(B, X/2, Y/2, Z/2, 2C)`
    """

    def __init__(self, layer: BasicLayer) -> None:
        super().__init__()
        self.blocks, self.downsample, self.use_checkpoint = layer.blocks, layer.downsample, layer.use_checkpoint
        for block in self.blocks:
            del block.attn.relative_position_index
        self.register_load_state_dict_pre_hook(_without_index)

    def forward(self, tokens: Tensor) -> Tensor:
        size = [int(side) // 2 for side in tokens.shape[1:4]]
        merged = self.in_one_launch(tokens) if in_one_launch(tokens) else self.by_kind(tokens)
        merged = merged.view(-1, *size, 8 * int(tokens.shape[4]))
        return self.downsample.reduction(layer_norm(merged, self.downsample.norm))

    def by_kind(self, tokens: Tensor) -> Tensor:
        """The tokens after all blocks, in the order of patch merging; each kind of box is attended to by itself."""
        tracing = torch.jit.is_tracing()
        batch, *size, width = map(int, tokens.shape) if tracing else tokens.shape
        shapes = tuple((tuple(block.window_size), tuple(block.shift_size)) for block in self.blocks)
        exporting = tracing or torch.compiler.is_exporting()  # an exporter's tensors must not be kept
        find = route if exporting else kept_route
        steps, boxes = find(batch, tuple(size), shapes, tokens.device)
        tokens = tokens.reshape(-1, width)
        for block, step, tiles in zip(self.blocks, steps[:-1], boxes, strict=True):
            tokens = reordered(tokens, *step)
            tokens = tokens + self.run(block_attention, block, tokens, tiles)
            tokens = tokens + self.run(_feed_forward, block, tokens)
        return reordered(tokens, *steps[-1])

    def in_one_launch(self, tokens: Tensor) -> Tensor:
        """The same with one launch for boxes of all kinds, which leaves the tokens where they are."""
        batch, *size, width = tokens.shape
        (merging,), _ = kept_route(batch, tuple(size), (), tokens.device)
        tokens = tokens.reshape(-1, width)
        for block in self.blocks:
            shape = tuple(block.window_size), tuple(block.shift_size)
            tables = kept_tables(batch, tuple(size), *shape, block.num_heads, tokens.device)
            tokens = tokens + self.run(fused_block_attention, block, tokens, tables)
            tokens = tokens + self.run(_feed_forward, block, tokens)
        return reordered(tokens, *merging)

    def run(self, step: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """A step of a block, recomputed in the backward pass if memory is short."""
        return (
            checkpoint(step, *inputs, use_reentrant=False, preserve_rng_state=False)
            if self.use_checkpoint
            else step(*inputs)
        )


def reordered(tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """`tokens[order]`, given the inverse order, too, for the way back."""
    return Reordered.apply(tokens, order, inverse) if torch.is_grad_enabled() else tokens.index_select(0, order)


class Reordered(torch.autograd.Function):
    """`reordered` with gradients: its backward pass takes where that of indexing would add."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return tokens.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.inverse), None, None


Step = tuple[Tensor, Tensor]
"""An order of tokens, seen from the one before, and the way back."""


def route(
    batch: int, size: tuple[int, ...], shapes: tuple[tuple[tuple[int, ...], ...], ...], device: torch.device
) -> tuple[tuple[Step, ...], tuple[tuple[Boxes, ...], ...]]:
    """From each order of the tokens to the next, with the way back, and the boxes of each block.

    The orders are the volume's own, those of the blocks, and the one in which patch merging joins neighbours.

    Args:
        batch: number of volumes B.
        size: X, Y, Z in tokens.
        shapes: window and shift of each block, in tokens.
        device: of the result.
    """
    tilings = [tiling(batch, size, *shape) for shape in shapes]
    grid = np.arange(batch * math.prod(size)).reshape(batch, *size)
    merging = np.stack([grid[:, x::2, y::2, z::2] for x, y, z in _CORNERS], -1)
    orders = [grid.flatten(), *(order for order, _ in tilings), merging.flatten()]
    steps = [np.argsort(before)[after] for before, after in pairwise(orders)]
    return (
        tuple((torch.from_numpy(step).to(device), torch.from_numpy(np.argsort(step)).to(device)) for step in steps),
        tuple(tuple(kind.to(device) for kind in boxes) for _, boxes in tilings),
    )


kept_route = torch.compiler.disable(lru_cache(maxsize=32)(route))


def block_attention(block: SwinTransformerBlock, tokens: Tensor, tiles: tuple[Boxes, ...]) -> Tensor:
    """Attention of each box to itself: `(B x N, C)` in the order of the boxes, to the same."""
    qkv = block.attn.qkv(layer_norm(tokens, block.norm1)).unflatten(1, (3, block.num_heads, -1))
    parts = qkv.split([boxes.count * boxes.tokens for boxes in tiles])
    outputs = []
    for boxes, part in zip(tiles, parts, strict=True):
        query, key, value = part.unflatten(0, (boxes.count, -1)).permute(2, 0, 3, 1, 4)  # boxes, H, n, D
        if boxes.padding is not None:
            key, value = (torch.cat([x, pad.expand(boxes.count, -1, -1, -1)], 2)
                          for x, pad in zip((key, value), padded_token(block, qkv.dtype), strict=True))  # fmt: skip
        out = attend(query, key, value, position_bias(block.attn.relative_position_bias_table, boxes))
        if torch.compiler.is_exporting():  # the exporter's attention has another memory layout
            out = out.clone(memory_format=torch.contiguous_format)
        outputs.append(out.transpose(1, 2).reshape(-1, tokens.shape[1]))
    return block.attn.proj(torch.cat(outputs))


def fused_block_attention(block: SwinTransformerBlock, tokens: Tensor, tables: WindowTables) -> Tensor:
    """As `block_attention`, of tokens in the volume's own order."""
    layer = block.attn.qkv
    qkv = layer(layer_norm(tokens, block.norm1))
    return block.attn.proj(window_attention(qkv, layer.bias, block.attn.relative_position_bias_table, tables))


def layer_norm(tokens: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
    """A layer norm, by default without parameters; on a GPU in the precision of the tokens.

    Autocast would make it single, with a copy before and after. Its statistics are in single precision either way.
    """
    weight, bias, eps = (norm.weight, norm.bias, norm.eps) if norm is not None else (None, None, 1e-5)
    if not tokens.is_cuda:
        return F.layer_norm(tokens, tokens.shape[-1:], weight, bias, eps)
    with torch.autocast("cuda", enabled=False):
        weight, bias = (None if p is None else p.to(tokens.dtype) for p in (weight, bias))
        return F.layer_norm(tokens, tokens.shape[-1:], weight, bias, eps)


def padded_token(block: SwinTransformerBlock, dtype: torch.dtype) -> Tensor:
    """Key and value of padding, `(2, H, 1, D)`: MONAI pads with zeros before the linear layer, so its bias remains."""
    return block.attn.qkv.bias.to(dtype).view(3, block.num_heads, 1, -1)[1:]


def _feed_forward(block: SwinTransformerBlock, tokens: Tensor) -> Tensor:
    return block.mlp(layer_norm(tokens, block.norm2))


def _channels_first(tokens: Tensor) -> Tensor:
    return tokens.permute(0, 4, 1, 2, 3)


def _without_index(stage: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Drop the index buffers of a checkpoint by MONAI, or by this project before it left them out."""
    for name in [name for name in state if name.startswith(prefix) and name.endswith("relative_position_index")]:
        del state[name]
