"""The symmetry-aware Swin encoder that the three networks share.

Every network takes a symmetric pair `(B, 2C, X, Y, Z)`: C channels of the image, then C of its mirrored counterpart.
All take the options of the encoder (`EncoderOptions`), whose defaults are the paper's sizes. Parameter names under
`swinViT` and in the decoder are those of MONAI's `SwinUNETR`, so its published weights load; `symmetry` is the
cross-attention, under the same name in all three.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.data import MetaTensor
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.utils import ensure_tuple_rep, look_up_option
from torch import Tensor, nn

from custom.networks.encoder import SwinEncoder
from custom.networks.saca import SymmetryAwareCrossAttention
from custom.support.errors import UserError
from custom.symmetry import split_pair

SYMMETRY_VARIANTS = ("saca", "channel", "none")
"""How a network uses the mirrored counterpart: cross-attention at the bottleneck (the paper), as extra input channels,
or not at all. All three take the same symmetric pair."""

BOTTLENECK = 4  # index of the coarsest features, (B, 16 x feature_size, X/32, Y/32, Z/32)


@dataclass(frozen=True)
class EncoderOptions:
    """Sizes of the encoder, and what it does with the counterpart: what all three networks can be told.

    Args:
        in_channels: channels C of the image, without its mirrored counterpart.
        feature_size: channels of the first stage, a multiple of 12.
        window_size: of the window attention, in tokens.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        symmetry: one of `SYMMETRY_VARIANTS`.
        use_checkpoint: recompute activations in the backward pass to save memory.
        asymmetry_map: each half of the pair has the map as its last channel, see
            `custom.transforms.asymmetry_channel`.

    Raises:
        ValueError: when `symmetry` is unknown.
    """

    in_channels: int = 1
    feature_size: int = 48
    window_size: int = 7
    depths: Sequence[int] = (2, 2, 2, 2)
    num_heads: Sequence[int] = (3, 6, 12, 24)
    symmetry: str = "saca"
    use_checkpoint: bool = False
    asymmetry_map: bool = False

    def __post_init__(self) -> None:
        look_up_option(self.symmetry, SYMMETRY_VARIANTS)

    @property
    def channels(self) -> int:
        """Channels of each half of the pair."""
        return self.in_channels + int(self.asymmetry_map)

    @property
    def channels_seen(self) -> int:
        """Channels that the encoder sees of each half of the pair."""
        return self.channels * (2 if self.symmetry == "channel" else 1)

    @property
    def width(self) -> int:
        """Channels of the bottleneck."""
        return 16 * self.feature_size

    def encoder(self) -> SwinEncoder:
        """The encoder of `monai.networks.nets.SwinUNETR`, by itself."""
        swin = SwinTransformer(
            in_chans=self.channels_seen,
            embed_dim=self.feature_size,
            window_size=(self.window_size,) * 3,
            patch_size=(2, 2, 2),
            depths=self.depths,
            num_heads=self.num_heads,
            use_checkpoint=self.use_checkpoint,
        )
        return SwinEncoder(swin)


class SymmetryAwareEncoding(nn.Module):
    """Mixin: encode a symmetric pair with `self.swinViT`, and join its two halves with `self.symmetry`."""

    swinViT: SwinEncoder  # noqa: N815  MONAI's name
    symmetry: SymmetryAwareCrossAttention | None
    variant: str
    asymmetry_map: bool

    def set_encoder(self, options: EncoderOptions, encoder: SwinEncoder) -> None:
        """Take an encoder, and the cross-attention that goes with it, if any."""
        self.variant, self.asymmetry_map = options.symmetry, options.asymmetry_map
        self.swinViT = encoder
        self.symmetry = SymmetryAwareCrossAttention(options.width) if options.symmetry == "saca" else None

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
        refuse_size(pair.shape[2:], multiple=self.swinViT.patch_size[0] ** 5)
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


def refuse_size(
    size: int | Sequence[int],
    advice: str = "pad the volume or ROI",
    within: int | Sequence[int] | None = None,
    multiple: int = 32,
) -> None:
    """Refuse what the encoder cannot halve five times, or what would be a single token, with no spread to normalise by.

    Args:
        size: voxels that the network sees, X Y Z, or one number for all three.
        advice: what to do.
        within: voxels of the volume, where that may be smaller.
        multiple: that each must be of.

    Raises:
        UserError: with the rule and the size.
    """
    size = tuple(map(min, ensure_tuple_rep(size, 3), ensure_tuple_rep(size if within is None else within, 3)))
    if any(side % multiple for side in size) or max(size) < 2 * multiple:
        rule = f"X, Y and Z must be multiples of {multiple}, one of them {2 * multiple} or more"
        raise UserError(f"{rule}, got {size}; {advice}")
