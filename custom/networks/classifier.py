"""The classifier: encoder, cross-attention, and the evidence of each place for each class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from custom.networks.encoding import SymmetryAwareEncoding, known_variant, read_scales, swin_encoder
from custom.networks.heads import (
    PlaceReadout,
    PooledHead,
    mean_of_scales,
    pool,
)
from custom.networks.saca import SymmetryAwareCrossAttention


class SASwinClassifier(SymmetryAwareEncoding):
    """Encoder, cross-attention, and the evidence of each place for each class.

    The paper's head reads the joined features, pooled over the whole brain, in which a small lesion is diluted. By
    default every place is read by itself, at `SCALES`: its features, and how far they differ from those of its mirrored
    counterpart. The logit of a scale is the peak over its places (`PlaceReadout`), and each scale is trained by itself,
    so that coarse ones, which tell training subjects apart by their shape, do not keep the fine ones from learning; in
    the prediction the finer count more (`mean_of_scales`).
    The variants without SACA have no counterpart and read the features alone.

    In eval mode it gives `logits / temperature + class_bias`: buffers, saved with the weights, that do nothing until
    they are fitted to validation cases (`custom.evaluation.CalibrationFit`).

    Args:
        num_classes: width of the output.
        readout: one of `READOUTS`.
        in_channels, feature_size, window_size, depths, num_heads, symmetry, use_checkpoint: as in `SASwinPretrainer`.

    Shape:
        - pair: `(B, 2C, X, Y, Z)`; output: `(B, num_classes)` logits; in training mode those of each scale,
          `(B, num_classes, 4)`, which `custom.support.GlobalBatchLoss` takes; the paper's readout has no scales
    """

    def __init__(
        self,
        num_classes: int = 2,
        in_channels: int = 1,
        feature_size: int = 48,
        window_size: int = 7,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        symmetry: str = "saca",
        readout: str = "places",
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        width = 16 * feature_size
        self.variant = known_variant(symmetry)
        self.scales = read_scales(readout)
        self.swinViT = swin_encoder(in_channels, feature_size, window_size, depths, num_heads, symmetry, use_checkpoint)
        self.symmetry = SymmetryAwareCrossAttention(width) if symmetry == "saca" else None
        read = [feature_size * 2**scale * (2 if symmetry == "saca" else 1) for scale in self.scales]
        self.head = PooledHead(width, num_classes) if readout == "paper" else PlaceReadout(read, num_classes)
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("class_bias", torch.zeros(num_classes))

    def forward(self, pair: Tensor) -> Tensor:
        logits = self.logits(pair)
        if self.training:
            return logits
        overall = logits if logits.ndim == 2 else mean_of_scales(logits.log_softmax(1))
        return overall / self.temperature + self.class_bias

    def logits(self, pair: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of the paper's readout; `(B, num_classes, 4)`, of each scale, of all places'."""
        scales = self.encode_scales(pair, self.scales)
        joined = self.join(*scales[-1])
        if isinstance(self.head, PooledHead):
            return self.head(pool(joined))
        return self.head(self.compare(scales, joined))

    def compare(self, scales: Sequence[tuple[Tensor, Tensor | None]], joined: Tensor) -> list[Tensor]:
        """What is read of each place, at each scale: its features, and how far they differ from their counterpart's."""
        features = [*(image for image, _ in scales[:-1]), joined]
        if self.symmetry is None:
            return features
        return [
            torch.cat([f, (image - mirrored).abs()], 1) for f, (image, mirrored) in zip(features, scales, strict=True)
        ]
