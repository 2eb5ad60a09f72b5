"""The pretraining network: encoder, cross-attention and the heads of the four pretext tasks."""

from typing import Any

import torch
from monai.utils import look_up_option
from torch import Tensor, nn

from custom.networks.encoding import EncoderOptions, SymmetryAwareEncoding
from custom.networks.heads import InpaintingDecoder, PooledHead, pool
from custom.networks.readouts import ASYMMETRY


class SASwinPretrainer(SymmetryAwareEncoding):
    """Encoder, cross-attention and the heads of the four pretext tasks.

    In training mode `forward` returns the pretext outputs as a dictionary:
        - `inpainting`: `(B, C, X, Y, Z)`, the image restored
        - `rotation`: `(B, 4)` logits of 0-3 quarter turns
        - `contrastive`: `(B, embedding_size)`
        - `asymmetry`: `(B,)`, how far the image differs from its counterpart, 0-2, *before* the cross-attention
    In eval mode it returns one tensor `(B, 1 + embedding_size)`: `asymmetry`, then the embedding, `contrastive`.

    Args:
        embedding_size: of the contrastive head, and the paper's symmetry-aware head.
        readout: one of `ASYMMETRY`: what the asymmetry is read from.
        encoder: `EncoderOptions`.

    Raises:
        ValueError: when `symmetry` is unknown, or X, Y, Z are not multiples of 32, or none is 64 or more.

    References:
        Ma et al., MICCAI 2024, section 2; heads after Tang et al., Self-Supervised Pre-Training of Swin Transformers,
        CVPR 2022.
    """

    def __init__(self, embedding_size: int = 512, readout: str = "places", **encoder: Any) -> None:
        super().__init__()
        options = EncoderOptions(**encoder)
        self.set_encoder(options, options.encoder())
        self.symmetry_head = look_up_option(readout, ASYMMETRY)(options, embedding_size)
        self.rotation_head = nn.Linear(options.width, 4)
        self.contrastive_head = PooledHead(options.width, embedding_size)
        self.decoder = InpaintingDecoder(options.width, options.in_channels)

    def forward(self, pair: Tensor) -> dict[str, Tensor] | Tensor:
        return self.pretext(pair) if self.training else self.embed(pair)

    def pretext(self, pair: Tensor) -> dict[str, Tensor]:
        scales = self.encode_scales(pair, self.symmetry_head.scales, with_mirrored=True)
        joined = self.join(*scales[-1])
        pooled = pool(joined)
        return {
            "inpainting": self.decoder(joined),
            "rotation": self.rotation_head(pooled),
            "contrastive": self.contrastive_head(pooled),
            "asymmetry": self.symmetry_head(scales),
        }

    def embed(self, pair: Tensor) -> Tensor:
        """Asymmetry, then the embedding, `(B, 1 + embedding_size)`."""
        scales = self.encode_scales(pair, self.symmetry_head.scales, with_mirrored=True)
        embedding = self.contrastive_head(pool(self.join(*scales[-1])))
        return torch.cat([self.symmetry_head(scales)[:, None], embedding], dim=1)
