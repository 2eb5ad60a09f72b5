"""The pretraining network: encoder, cross-attention and the heads of the four pretext tasks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from custom.networks.encoding import (
    SymmetryAwareEncoding,
    known_variant,
    read_scales,
    swin_encoder,
)
from custom.networks.heads import (
    SHARPNESS,
    InpaintingDecoder,
    PooledHead,
    asymmetry_of_places,
    mean_of_scales,
    peak,
    pool,
)
from custom.networks.saca import SymmetryAwareCrossAttention


class SASwinPretrainer(SymmetryAwareEncoding):
    """Encoder, cross-attention and the heads of the four pretext tasks.

    In training mode `forward` returns the pretext outputs as a dictionary:
        - `inpainting`: `(B, C, X, Y, Z)`, the image restored
        - `rotation`: `(B, 4)` logits of 0-3 quarter turns
        - `contrastive`: `(B, embedding_size)`
        - `asymmetry`: `(B,)`, how far the image differs from its counterpart, 0-2, *before* the cross-attention
    In eval mode it returns one tensor `(B, 1 + embedding_size)`: `asymmetry`, then the embedding, `contrastive`.

    The paper's asymmetry is `1 - cos` of the two halves' embeddings of pooled features, in which a small lesion is
    diluted (the symmetry-aware head, SAH). By default it is the peak over all places of `1 - cos` of their features
    there, at `SCALES`, of which the finer count more; it has no parameters of its own.

    Args:
        in_channels: channels C of the image, without its mirrored counterpart.
        feature_size: channels of the first stage, a multiple of 12.
        window_size: of the window attention, in tokens.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        embedding_size: of the contrastive head, and the paper's symmetry-aware head.
        symmetry: one of `SYMMETRY_VARIANTS`.
        readout: one of `READOUTS`: what the asymmetry is read from.
        use_checkpoint: recompute activations in the backward pass to save memory.

    Raises:
        ValueError: when `symmetry` is unknown, or X, Y, Z are not multiples of 32, or none is 64 or more.

    References:
        Ma et al., MICCAI 2024, section 2; heads after Tang et al., Self-Supervised Pre-Training of Swin Transformers,
        CVPR 2022.
    """

    def __init__(
        self,
        in_channels: int = 1,
        feature_size: int = 48,
        window_size: int = 7,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        embedding_size: int = 512,
        symmetry: str = "saca",
        readout: str = "places",
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        width = 16 * feature_size
        self.variant = known_variant(symmetry)
        self.swinViT = swin_encoder(in_channels, feature_size, window_size, depths, num_heads, symmetry, use_checkpoint)
        self.symmetry = SymmetryAwareCrossAttention(width) if symmetry == "saca" else None
        self.scales = read_scales(readout)
        self.symmetry_head = PooledHead(width, embedding_size) if readout == "paper" else None
        self.rotation_head = nn.Linear(width, 4)
        self.contrastive_head = PooledHead(width, embedding_size)
        self.decoder = InpaintingDecoder(width, in_channels)

    def forward(self, pair: Tensor) -> dict[str, Tensor] | Tensor:
        return self.pretext(pair) if self.training else self.embed(pair)

    def pretext(self, pair: Tensor) -> dict[str, Tensor]:
        scales = self.encode_scales(pair, self.scales, with_mirrored=True)
        joined = self.join(*scales[-1])
        pooled = pool(joined)
        return {
            "inpainting": self.decoder(joined),
            "rotation": self.rotation_head(pooled),
            "contrastive": self.contrastive_head(pooled),
            "asymmetry": self.asymmetry(scales),
        }

    def embed(self, pair: Tensor) -> Tensor:
        """Asymmetry, then the embedding, `(B, 1 + embedding_size)`."""
        scales = self.encode_scales(pair, self.scales, with_mirrored=True)
        return torch.cat([self.asymmetry(scales)[:, None], self.contrastive_head(pool(self.join(*scales[-1])))], dim=1)

    def asymmetry(self, scales: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """How far an image differs from its counterpart, `(B,)`, from the features of both at some scales."""
        if self.symmetry_head is None:
            peaks = [peak(asymmetry_of_places(*halves).flatten(1), SHARPNESS) for halves in scales]
            return mean_of_scales(torch.stack(peaks, -1))
        # Both halves at once, so that their normalisation is theirs together.
        embedding, mirrored = self.symmetry_head(torch.cat([pool(half) for half in scales[-1]])).chunk(2)
        return asymmetry_of_places(embedding, mirrored)
