"""The symmetry-aware Swin encoder that the three networks share.

Every network takes a symmetric pair `(B, 2C, X, Y, Z)`: C channels of the image, then C of its mirrored counterpart.
The constructors' defaults are the paper's sizes. Parameter names under `swinViT` and in the decoder are those of
MONAI's `SwinUNETR`, so its published weights load; `symmetry` is the cross-attention, under the same name in all three.
"""

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.utils import look_up_option
from torch import Tensor, nn

from custom.networks.encoder import SwinEncoder
from custom.networks.saca import SymmetryAwareCrossAttention
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
        image, mirrored = halves(pair)
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


def halves(pair: Tensor) -> tuple[Tensor, Tensor]:
    """`split_pair` without MONAI's metadata, which would be sliced along with every slice of the features."""
    return split_pair(pair.as_tensor() if isinstance(pair, MetaTensor) else pair)


def swin_encoder(
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


def known_variant(symmetry: str) -> str:
    """The variant, if it is one of `SYMMETRY_VARIANTS`."""
    return look_up_option(symmetry, SYMMETRY_VARIANTS)


def read_scales(readout: str) -> tuple[int, ...]:
    """The scales whose features a readout needs."""
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
