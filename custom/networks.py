"""One network per bundle, on one symmetry-aware Swin encoder.

Every network takes a symmetric pair `(B, 2C, X, Y, Z)`: C channels of the image, then C of its mirrored counterpart.
The constructors' defaults are the paper's sizes. Parameter names under `swinViT` and in the decoder are those of
MONAI's `SwinUNETR`, so its published weights load; `symmetry` is the cross-attention, under the same name in all three.
"""

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.utils import look_up_option
from torch import Tensor, nn

from custom.channels_last import channels_last, use_channels_last
from custom.encoder import SwinEncoder
from custom.heads import (
    SHARPNESS,
    InpaintingDecoder,
    PlaceReadout,
    PooledHead,
    asymmetry_of_places,
    mean_of_scales,
    peak,
    pool,
)
from custom.saca import SymmetryAwareCrossAttention
from custom.symmetry import split_pair

SYMMETRY_VARIANTS = ("saca", "channel", "none")
"""How a network uses the mirrored counterpart: cross-attention at the bottleneck (the paper), as extra input channels,
or not at all. All three take the same symmetric pair."""

READOUTS = ("places", "paper")
"""What is said of a whole brain: what stands out at any of its places, or the mean over all of them (the paper)."""

SCALES = (1, 2, 3, 4)
"""Whose places are read: features of X/4 to X/32."""

BOTTLENECK = 4  # index of the coarsest features, (B, 16 x feature_size, X/32, Y/32, Z/32)


class SymmetryAwareEncoding(nn.Module):
    """Mixin: encode a symmetric pair with `self.swinViT`, and join its two halves with `self.symmetry`."""

    swinViT: SwinEncoder  # noqa: N815  MONAI's name
    symmetry: SymmetryAwareCrossAttention | None
    variant: str

    def encoder_input(self, image: Tensor, mirrored: Tensor) -> Tensor:
        """What the shared encoder sees of one half of the pair, `(B, C or 2C, X, Y, Z)`."""
        return torch.cat([image, mirrored], dim=1) if self.variant == "channel" else image

    def encode(self, pair: Tensor, with_mirrored: bool = False) -> tuple[list[Tensor], Tensor | None]:
        """Features of the image at five scales, and the bottleneck features of its mirrored counterpart.

        Both halves go through the encoder in one batch. The counterpart is encoded only where something needs it: the
        cross-attention, or the caller (`with_mirrored`); otherwise the second result is None.
        """
        hidden = self.hidden(pair, with_mirrored)
        images = [self.swinViT.normalized(tokens[: len(pair)]) for tokens in hidden]
        mirrored = hidden[BOTTLENECK][len(pair) :]
        return images, self.swinViT.normalized(mirrored) if len(mirrored) else None

    def hidden(self, pair: Tensor, with_mirrored: bool) -> list[Tensor]:
        """Features before their normalisation, of the images and, if needed, then of their counterparts."""
        _check_size(pair, self.swinViT.patch_size[0] ** 5)
        image, mirrored = _halves(pair)
        images = self.encoder_input(image, mirrored)
        if self.symmetry is None and not with_mirrored:
            return self.swinViT.hidden(images)
        return self.swinViT.hidden(torch.cat([images, self.encoder_input(mirrored, image)]))

    def encode_scales(
        self, pair: Tensor, scales: Sequence[int], with_mirrored: bool = False
    ) -> list[tuple[Tensor, Tensor | None]]:
        """As `encode`, at some scales: features of the image and, if needed, of its mirrored counterpart at each."""
        hidden = self.hidden(pair, with_mirrored)
        halves = (self.swinViT.normalized(hidden[scale]).split(len(pair)) for scale in scales)
        return [(image, mirrored[0] if mirrored else None) for image, *mirrored in halves]

    def join(self, features: Tensor, mirrored: Tensor | None) -> Tensor:
        """Bottleneck features after the cross-attention; as they are in the variants that have none."""
        return features if self.symmetry is None else self.symmetry(features, mirrored)


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
        self.variant = _known_variant(symmetry)
        self.swinViT = _swin(in_channels, feature_size, window_size, depths, num_heads, symmetry, use_checkpoint)
        self.symmetry = SymmetryAwareCrossAttention(width) if symmetry == "saca" else None
        self.scales = _read_scales(readout)
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


class SASwinClassifier(SymmetryAwareEncoding):
    """Encoder, cross-attention, and the evidence of each place for each class.

    The paper's head reads the joined features, pooled over the whole brain, in which a small lesion is diluted. By
    default every place is read by itself, at `SCALES`: its features, and how far they differ from those of its mirrored
    counterpart. The logit of a scale is the peak over its places (`PlaceReadout`), and each scale is trained by itself,
    so that coarse ones, which tell training subjects apart by their shape, do not keep the fine ones from learning; in
    the prediction the finer count more (`mean_of_scales`).
    The variants without SACA have no counterpart and read the features alone.

    In eval mode it gives `logits / temperature + class_bias`: buffers, saved with the weights, that do nothing until
    they are fitted to validation cases (`custom.handlers.CalibrationFit`).

    Args:
        num_classes: width of the output.
        readout: one of `READOUTS`.
        in_channels, feature_size, window_size, depths, num_heads, symmetry, use_checkpoint: as in `SASwinPretrainer`.

    Shape:
        - pair: `(B, 2C, X, Y, Z)`; output: `(B, num_classes)` logits; in training mode those of each scale,
          `(B, num_classes, 4)`, which `custom.distributed.GlobalBatchLoss` takes; the paper's readout has no scales
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
        self.variant = _known_variant(symmetry)
        self.scales = _read_scales(readout)
        self.swinViT = _swin(in_channels, feature_size, window_size, depths, num_heads, symmetry, use_checkpoint)
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


class SASwinUNETR(SymmetryAwareEncoding, SwinUNETR):
    """MONAI's Swin UNETR whose bottleneck goes through the cross-attention; skip connections come from the image.

    With the cross-attention replaced by the identity it equals `monai.networks.nets.SwinUNETR` on the image.

    Args:
        out_channels: width of the output.
        in_channels, feature_size, window_size, depths, num_heads, symmetry, use_checkpoint: as in `SASwinPretrainer`.

    Shape:
        - pair: `(B, 2C, X, Y, Z)`; output: `(B, out_channels, X, Y, Z)` logits
    """

    def __init__(
        self,
        out_channels: int = 1,
        in_channels: int = 1,
        feature_size: int = 48,
        window_size: int = 7,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        symmetry: str = "saca",
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__(
            in_channels=in_channels * (2 if symmetry == "channel" else 1),
            out_channels=out_channels,
            feature_size=feature_size,
            window_size=window_size,
            depths=depths,
            num_heads=num_heads,
            use_checkpoint=use_checkpoint,
        )
        self.variant = _known_variant(symmetry)
        self.swinViT = SwinEncoder(self.swinViT)
        self.symmetry = SymmetryAwareCrossAttention(16 * feature_size) if symmetry == "saca" else None
        use_channels_last(self)

    def forward(self, pair: Tensor) -> Tensor:
        hidden, mirrored = self.encode(pair)
        return self.decode(self.encoder_input(*_halves(pair)), hidden, mirrored)

    def predict_both(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the pair, and of the pair with its halves swapped (the mirrored brain), from one encoder pass.

        They are decoded one after the other, in the memory of one.
        """
        image, mirrored = _halves(pair)
        images = torch.cat([self.encoder_input(image, mirrored), self.encoder_input(mirrored, image)])
        halves = list(zip(*(features.chunk(2) for features in (images, *self.swinViT(images))), strict=True))
        logits, swapped = (
            self.decode(own, hidden, counterparts[BOTTLENECK])
            for (own, *hidden), (_, *counterparts) in (halves, halves[::-1])
        )
        return logits, swapped

    def decode(self, images: Tensor, hidden: Sequence[Tensor], mirrored: Tensor | None) -> Tensor:
        """Logits, from what the encoder saw, its features, and the counterparts' at the bottleneck."""
        x = self.encoder10(self.join(hidden[BOTTLENECK], mirrored))
        x = self.decoder5(x, hidden[3])
        x = self.decoder4(x, self.encoder4(hidden[2]))
        x = self.decoder3(x, self.encoder3(hidden[1]))
        x = self.decoder2(x, self.encoder2(hidden[0]))
        return self.out(self.decoder1(x, self.encoder1(channels_last(images))))


def _halves(pair: Tensor) -> tuple[Tensor, Tensor]:
    """`split_pair` without MONAI's metadata, which would be sliced along with every slice of the features."""
    return split_pair(pair.as_tensor() if isinstance(pair, MetaTensor) else pair)


def _swin(
    in_channels: int,
    feature_size: int,
    window_size: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    symmetry: str,
    use_checkpoint: bool,
) -> SwinEncoder:
    """The encoder of `monai.networks.nets.SwinUNETR`, by itself."""
    swin = SwinTransformer(
        in_chans=in_channels * (2 if symmetry == "channel" else 1),
        embed_dim=feature_size,
        window_size=(window_size,) * 3,
        patch_size=(2, 2, 2),
        depths=depths,
        num_heads=num_heads,
        use_checkpoint=use_checkpoint,
    )
    return SwinEncoder(swin)


def _known_variant(symmetry: str) -> str:
    return look_up_option(symmetry, SYMMETRY_VARIANTS)


def _read_scales(readout: str) -> tuple[int, ...]:
    return SCALES if look_up_option(readout, READOUTS) == "places" else (BOTTLENECK,)


def _check_size(pair: Tensor, multiple: int) -> None:
    size = tuple(pair.shape[2:])
    if (
        any(side % multiple for side in size) or max(size) < 2 * multiple
    ):  # a single token has no spread to normalise by
        raise ValueError(
            f"X, Y and Z must be multiples of {multiple}, one of them {2 * multiple} or more, got {size}; "
            "pad the volume or ROI"
        )
