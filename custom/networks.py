"""One network per bundle, on one symmetry-aware Swin encoder.

Every network takes a symmetric pair `(B, 2C, X, Y, Z)`: C channels of the image, then C of its mirrored counterpart.
The constructors' defaults are the paper's sizes. Parameter names under `swinViT` and in the decoder are those of
MONAI's `SwinUNETR`, so its published weights load; `symmetry` is the cross-attention, under the same name in all three.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.data import MetaTensor
from monai.networks.layers import Conv
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.utils import look_up_option
from torch import Tensor, nn

from custom.distributed import gather_batch, local_batch
from custom.encoder import SwinEncoder
from custom.saca import SymmetryAwareCrossAttention
from custom.symmetry import split_pair

SYMMETRY_VARIANTS = ("saca", "channel", "none")
"""How a network uses the mirrored counterpart: cross-attention at the bottleneck (the paper), as extra input channels,
or not at all. All three take the same symmetric pair."""

READOUTS = ("asymmetry", "paper")
"""What the classifier's head reads of a pair: the joined features and the asymmetry, or the joined features alone."""

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

    def encode_bottleneck(self, pair: Tensor, with_mirrored: bool = False) -> tuple[Tensor, Tensor | None]:
        """As `encode`, the coarsest features alone."""
        image, *mirrored = self.swinViT.normalized(self.hidden(pair, with_mirrored)[BOTTLENECK]).split(len(pair))
        return image, mirrored[0] if mirrored else None

    def hidden(self, pair: Tensor, with_mirrored: bool) -> list[Tensor]:
        """Features before their normalisation, of the images and, if needed, then of their counterparts."""
        _check_size(pair, self.swinViT.patch_size[0] ** 5)
        image, mirrored = _halves(pair)
        images = self.encoder_input(image, mirrored)
        if self.symmetry is None and not with_mirrored:
            return self.swinViT.hidden(images)
        return self.swinViT.hidden(torch.cat([images, self.encoder_input(mirrored, image)]))

    def join(self, features: Tensor, mirrored: Tensor | None) -> Tensor:
        """Bottleneck features after the cross-attention; as they are in the variants that have none."""
        return features if self.symmetry is None else self.symmetry(features, mirrored)


class SASwinPretrainer(SymmetryAwareEncoding):
    """Encoder, cross-attention and the heads of the four pretext tasks.

    In training mode `forward` returns the pretext outputs as a dictionary:
        - `inpainting`: `(B, C, X, Y, Z)`, the image restored
        - `rotation`: `(B, 4)` logits of 0-3 quarter turns
        - `contrastive`: `(B, embedding_size)`
        - `embedding`, `mirrored`: `(B, embedding_size)` of the image and of its counterpart *before* the
        cross-attention
          (the symmetry-aware head, SAH)
    In eval mode it returns one tensor `(B, 2 x embedding_size)`: `embedding`, then `mirrored`.

    Args:
        in_channels: channels C of the image, without its mirrored counterpart.
        feature_size: channels of the first stage, a multiple of 12.
        window_size: of the window attention, in tokens.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        embedding_size: of the contrastive and symmetry-aware heads.
        symmetry: one of `SYMMETRY_VARIANTS`.
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
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        width = 16 * feature_size
        self.variant = _known_variant(symmetry)
        self.swinViT = _swin(in_channels, feature_size, window_size, depths, num_heads, symmetry, use_checkpoint)
        self.symmetry = SymmetryAwareCrossAttention(width) if symmetry == "saca" else None
        self.rotation_head = nn.Linear(width, 4)
        self.contrastive_head = PooledHead(width, embedding_size)
        self.symmetry_head = PooledHead(width, embedding_size)
        self.decoder = InpaintingDecoder(width, in_channels)

    def forward(self, pair: Tensor) -> dict[str, Tensor] | Tensor:
        return self.pretext(pair) if self.training else torch.cat(self.embed(pair), dim=1)

    def pretext(self, pair: Tensor) -> dict[str, Tensor]:
        features, mirrored = self.encode_bottleneck(pair, with_mirrored=True)
        joined = self.join(features, mirrored)
        pooled = pool(joined)
        return {
            "inpainting": self.decoder(joined),
            "rotation": self.rotation_head(pooled),
            "contrastive": self.contrastive_head(pooled),
            **dict(zip(("embedding", "mirrored"), self.embed_pair(features, mirrored), strict=True)),
        }

    def embed(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the image and of its mirrored counterpart, `(B, embedding_size)` each."""
        return self.embed_pair(*self.encode_bottleneck(pair, with_mirrored=True))

    def embed_pair(self, features: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor]:
        """The symmetry-aware head (SAH) on both halves at once, so that its normalisation is theirs together."""
        embedding, counterpart = self.symmetry_head(torch.cat([pool(features), pool(mirrored)])).chunk(2)
        return embedding, counterpart


class PooledHead(nn.Sequential):
    """Pooled features `(B, width)` to `(B, out_features)`: batch norm, then a linear layer.

    Pooled features of different brains are nearly parallel. Without the normalisation every cosine starts at 1, where
    its gradient vanishes, and a linear classifier sees mostly what all brains share; with it they learn many times
    faster.
    """

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__(GlobalBatchNorm(width), nn.Linear(width, out_features))


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch norm over the batches of all processes; it takes its running statistics for a batch of one.

    Such a batch is the remainder of an epoch. (PyTorch's SyncBatchNorm is for GPUs only.)
    """

    def forward(self, features: Tensor) -> Tensor:
        gathered = gather_batch(features) if self.training else features
        if len(gathered) > 1:
            return local_batch(super().forward(gathered), len(features))
        return nn.functional.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class InpaintingDecoder(nn.Sequential):
    """From bottleneck features `(B, width, X/32, ...)` back to the image `(B, C, X, Y, Z)`.

    Five stages of convolution, instance norm, LeakyReLU and trilinear x2, then a 1x1x1 convolution. That convolution
    and the interpolation before it commute; it is done first, on an eighth of the voxels.
    """

    def __init__(self, width: int, out_channels: int) -> None:
        conv = Conv[Conv.CONV, 3]
        widths = [width // 2**i for i in range(6)]  # 768 384 192 96 48 24 in the paper
        stages = [
            nn.Sequential(
                conv(wide, narrow, kernel_size=3, padding=1),
                nn.InstanceNorm3d(narrow),
                nn.LeakyReLU(),
                nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
            )
            for wide, narrow in pairwise(widths)
        ]
        super().__init__(*stages, conv(widths[-1], out_channels, kernel_size=1))

    def forward(self, features: Tensor) -> Tensor:
        *stages, last, conv = self
        for stage in stages:
            features = stage(features)
        *before, upsample = last
        for layer in before:
            features = layer(features)
        return upsample(conv(features))


class SASwinClassifier(SymmetryAwareEncoding):
    """Encoder, cross-attention, and a linear head on the pooled, normalised features.

    The paper's head reads the joined features, pooled over the whole brain, in which a small lesion is diluted. By
    default this one also reads the asymmetry: how far the features of each place differ from those of its mirrored
    counterpart, before they are pooled. The variants without SACA have no counterpart and read their features alone.

    Args:
        num_classes: width of the output.
        readout: one of `READOUTS`.
        in_channels, feature_size, window_size, depths, num_heads, symmetry, use_checkpoint: as in `SASwinPretrainer`.

    Shape:
        - pair: `(B, 2C, X, Y, Z)`; output: `(B, num_classes)` logits
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
        readout: str = "asymmetry",
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        width = 16 * feature_size
        self.variant = _known_variant(symmetry)
        self.reads_asymmetry = look_up_option(readout, READOUTS) == "asymmetry" and symmetry == "saca"
        self.swinViT = _swin(in_channels, feature_size, window_size, depths, num_heads, symmetry, use_checkpoint)
        self.symmetry = SymmetryAwareCrossAttention(width) if symmetry == "saca" else None
        self.head = PooledHead(2 * width if self.reads_asymmetry else width, num_classes)

    def forward(self, pair: Tensor) -> Tensor:
        features, mirrored = self.encode_bottleneck(pair)
        pooled = pool(self.join(features, mirrored))
        return self.head(torch.cat([pooled, asymmetry(features, mirrored)], 1) if self.reads_asymmetry else pooled)


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

    def forward(self, pair: Tensor) -> Tensor:
        hidden, mirrored = self.encode(pair)
        return self.decode(self.encoder_input(*_halves(pair)), hidden, mirrored)

    def predict_both(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the pair, and of the pair with its halves swapped (the mirrored brain), from one encoder pass."""
        image, mirrored = _halves(pair)
        images = torch.cat([self.encoder_input(image, mirrored), self.encoder_input(mirrored, image)])
        hidden = self.swinViT(images)
        counterparts = None if self.symmetry is None else hidden[BOTTLENECK].roll(len(pair), dims=0)
        logits, swapped = self.decode(images, hidden, counterparts).chunk(2)
        return logits, swapped

    def decode(self, images: Tensor, hidden: Sequence[Tensor], mirrored: Tensor | None) -> Tensor:
        """Logits, from what the encoder saw, its features, and the counterparts' at the bottleneck."""
        x = self.encoder10(self.join(hidden[BOTTLENECK], mirrored))
        x = self.decoder5(x, hidden[3])
        x = self.decoder4(x, self.encoder4(hidden[2]))
        x = self.decoder3(x, self.encoder3(hidden[1]))
        x = self.decoder2(x, self.encoder2(hidden[0]))
        return self.out(self.decoder1(x, self.encoder1(images)))


def pool(features: Tensor) -> Tensor:
    """Mean over space, `(B, C, X, Y, Z)` to `(B, C)`: no single token stands for the whole."""
    return features.mean(dim=(2, 3, 4))


def asymmetry(features: Tensor, mirrored: Tensor) -> Tensor:
    """Mean over space of how far each place differs from its mirrored counterpart, two `(B, C, X, Y, Z)` to `(B, C)`.

    Differences come before the mean: the means of a volume's features and of its mirror image's are nearly the same.
    """
    return pool((features - mirrored).abs())


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


def _check_size(pair: Tensor, multiple: int) -> None:
    size = tuple(pair.shape[2:])
    if (
        any(side % multiple for side in size) or max(size) < 2 * multiple
    ):  # a single token has no spread to normalise by
        raise ValueError(
            f"X, Y and Z must be multiples of {multiple}, one of them {2 * multiple} or more, got {size}; "
            "pad the volume or ROI"
        )
