"""The three tasks composed of stock MONAI 1.6.1 parts: what its user would write, with this project's parameters.

Each network is ours with MONAI's own `SwinTransformer`, so that parameters, losses and heads are the same. `separate`
runs one forward pass per view and per half of the pair, as the reference does; else both halves of all views share one.
"""

from collections.abc import Sequence

import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn

from custom.networks.channels_last import InstanceNorm, PointwiseConv
from custom.networks.classifier import SASwinClassifier
from custom.networks.encoding import BOTTLENECK
from custom.networks.heads import pool
from custom.networks.pretrainer import SASwinPretrainer
from custom.networks.segmenter import SASwinUNETR
from custom.symmetry import split_pair
from custom.weights.transfer import transfer


def use_stock_layers(network: nn.Module) -> None:
    """Torch's own layers in place of those of `custom.networks.channels_last`, and the usual memory layout."""
    for part in network.modules():
        if isinstance(part, InstanceNorm | PointwiseConv):
            part.__class__ = type(part).__bases__[0]
    if isinstance(network, SASwinUNETR):
        network.encoder1.register_forward_pre_hook(
            lambda _, inputs: (inputs[0].clone(memory_format=torch.contiguous_format),)
        )


class StockEncoding:
    """Mixin: MONAI's encoder in place of ours."""

    separate: bool

    def use_stock_encoder(self, feature_size: int, separate: bool, use_checkpoint: bool) -> None:
        self.separate = separate
        swin = SwinTransformer(
            in_chans=1,
            embed_dim=feature_size,
            window_size=(7, 7, 7),
            patch_size=(2, 2, 2),
            depths=(2, 2, 2, 2),
            num_heads=(3, 6, 12, 24),
            use_checkpoint=use_checkpoint,
            use_flash_attention=not separate,  # MONAI's best setting; it acts without gradients only
        )
        transfer(swin, self.swinViT.state_dict(), parts=("",), minimum=1.0)
        self.swinViT = swin
        use_stock_layers(self)

    def encode(self, pair: Tensor, with_mirrored: bool = False) -> tuple[list[Tensor], Tensor]:
        halves = split_pair(pair)
        if self.separate:
            image, mirrored = (self.swinViT(half) for half in halves)
            return image, mirrored[BOTTLENECK]
        both = self.swinViT(torch.cat(halves))
        return [features.chunk(2)[0] for features in both], both[BOTTLENECK].chunk(2)[1]

    def encode_scales(
        self, pair: Tensor, scales: Sequence[int], with_mirrored: bool = False
    ) -> list[tuple[Tensor, Tensor | None]]:
        hidden, mirrored = self.encode(pair)
        return [(hidden[scale], mirrored if scale == BOTTLENECK else None) for scale in scales]


class StockPretrainer(StockEncoding, SASwinPretrainer):
    """Four encoder passes a step if `separate`: two views, two halves each."""

    def __init__(self, feature_size: int, separate: bool, use_checkpoint: bool) -> None:
        super().__init__(feature_size=feature_size, readout="paper")
        self.use_stock_encoder(feature_size, separate, use_checkpoint)

    def pretext(self, pair: Tensor) -> dict[str, Tensor]:
        views = pair.chunk(2) if self.separate else [pair]
        encoded = [self.encode_scales(view, self.symmetry_head.scales)[0] for view in views]
        joined = [self.join(*halves) for halves in encoded]
        pooled = torch.cat([pool(features) for features in joined])
        decoded = [nn.Sequential.forward(self.decoder, features) for features in joined]
        halves = tuple(torch.cat(half) for half in zip(*encoded, strict=True))
        return {
            "inpainting": torch.cat(decoded),
            "rotation": self.rotation_head(pooled),
            "contrastive": self.contrastive_head(pooled),
            "asymmetry": self.symmetry_head([halves]),
        }


class StockClassifier(StockEncoding, SASwinClassifier):
    """Two encoder passes a step if `separate`."""

    def __init__(self, feature_size: int, separate: bool, use_checkpoint: bool) -> None:
        super().__init__(feature_size=feature_size, readout="paper")
        self.use_stock_encoder(feature_size, separate, use_checkpoint)


class StockUNETR(StockEncoding, SASwinUNETR):
    """Two encoder passes a step if `separate`."""

    def __init__(self, feature_size: int, separate: bool, use_checkpoint: bool) -> None:
        super().__init__(out_channels=2, readout="paper", feature_size=feature_size)
        self.use_stock_encoder(feature_size, separate, use_checkpoint)
