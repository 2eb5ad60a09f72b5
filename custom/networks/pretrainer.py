"""The pretraining network: encoder, cross-attention and the heads of the pretext tasks."""

from collections.abc import Mapping
from typing import Any

import torch
from monai.networks.layers import Conv
from monai.utils import look_up_option
from torch import Tensor, nn

from custom.networks.encoding import BOTTLENECK, EncoderOptions, SymmetryAwareEncoding, halves
from custom.networks.heads import InpaintingDecoder, PooledHead, pool
from custom.networks.readouts import ASYMMETRY
from custom.networks.segmenter import ComparingDecoder, SASwinUNETR

DECODER = ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10",
           "decoder1", "decoder2", "decoder3", "decoder4", "decoder5", "comparisons")  # fmt: skip
"""Modules that the segmenter has beside encoder, cross-attention and its last layer."""
PLACES = 1
"""Scale whose places are told apart: features of X/4."""


class SASwinPretrainer(ComparingDecoder, SymmetryAwareEncoding):
    """Encoder, cross-attention and the heads of the pretext tasks.

    In training mode `forward` returns the pretext outputs as a dictionary:
        - `inpainting`: `(B, C, X, Y, Z)`, the image restored
        - `rotation`: `(B, 4)` logits of 0-3 quarter turns
        - `contrastive`: `(B, embedding_size)`
        - `asymmetry`: `(B,)`, how far the image differs from its counterpart, 0-2, *before* the cross-attention
    and, where it is `dense`, what painted brains are asked for:
        - `tissue`: `(B, tissues, X, Y, Z)` logits, and `lesion`: `(B, 1, X, Y, Z)` logits, by the segmenter's decoder
        - `places`: `(B, 2, 32, X/4, Y/4, Z/4)`, embeddings of the places of image and counterpart
    In eval mode it returns one tensor `(B, 1 + embedding_size)`: `asymmetry`, then the embedding, `contrastive`.

    Args:
        embedding_size: of the contrastive head, and the paper's symmetry-aware head.
        readout: one of `ASYMMETRY`: what the asymmetry is read from.
        dense: with the segmenter's decoder, which fine-tuning takes over.
        tissues: classes of tissue.
        encoder: `EncoderOptions`.

    Raises:
        ValueError: when `symmetry` is unknown, or X, Y, Z are not multiples of 32, or none is 64 or more.

    References:
        Ma et al., MICCAI 2024, section 2; heads after Tang et al., Self-Supervised Pre-Training of Swin Transformers,
        CVPR 2022.
    """

    def __init__(
        self, embedding_size: int = 512, readout: str = "places", dense: bool = False, tissues: int = 5, **encoder: Any
    ) -> None:
        super().__init__()
        options = EncoderOptions(**encoder)
        self.set_encoder(options, options.encoder())
        self.symmetry_head = look_up_option(readout, ASYMMETRY)(options, embedding_size)
        self.rotation_head = nn.Linear(options.width, 4)
        self.contrastive_head = PooledHead(options.width, embedding_size)
        self.decoder = InpaintingDecoder(options.width, options.channels)
        self.dense_head = None
        if dense:
            segmenter = SASwinUNETR(1 + tissues, readout, **encoder)
            for name in DECODER:
                self.add_module(name, getattr(segmenter, name))
            self.dense_head = segmenter.out
            self.places_head = Conv[Conv.CONV, 3](options.feature_size * 2**PLACES, 32, kernel_size=1)

    def forward(self, pair: Tensor) -> dict[str, Tensor] | Tensor:
        return self.pretext(pair) if self.training else self.embed(pair)

    def pretext(self, pair: Tensor) -> dict[str, Tensor]:
        wanted = range(BOTTLENECK + 1) if self.dense_head is not None else self.symmetry_head.scales
        scales = dict(zip(wanted, self.encode_scales(pair, wanted, with_mirrored=True), strict=True))
        joined = self.join(*scales[BOTTLENECK])
        pooled = pool(joined)
        return {
            "inpainting": self.decoder(joined),
            "rotation": self.rotation_head(pooled),
            "contrastive": self.contrastive_head(pooled),
            "asymmetry": self.symmetry_head([scales[scale] for scale in self.symmetry_head.scales]),
            **(self.of_places(pair, scales) if self.dense_head is not None else {}),
        }

    def of_places(self, pair: Tensor, scales: Mapping[int, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """What is said of each place."""
        lesion, tissue = self.dense_head(self.decode(halves(pair), [*scales.values()])).tensor_split([1], dim=1)
        places = torch.stack([self.places_head(half) for half in scales[PLACES]], 1)
        return {"lesion": lesion, "tissue": tissue, "places": places}

    def embed(self, pair: Tensor) -> Tensor:
        """Asymmetry, then the embedding, `(B, 1 + embedding_size)`."""
        scales = self.encode_scales(pair, self.symmetry_head.scales, with_mirrored=True)
        embedding = self.contrastive_head(pool(self.join(*scales[-1])))
        return torch.cat([self.symmetry_head(scales)[:, None], embedding], dim=1)
