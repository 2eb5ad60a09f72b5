"""The segmenter: MONAI's Swin UNETR whose bottleneck goes through the cross-attention."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import SwinUNETR
from torch import Tensor

from custom.networks.channels_last import channels_last, use_channels_last
from custom.networks.encoder import SwinEncoder
from custom.networks.encoding import BOTTLENECK, EncoderOptions, SymmetryAwareEncoding, halves


class SASwinUNETR(SymmetryAwareEncoding, SwinUNETR):
    """MONAI's Swin UNETR whose bottleneck goes through the cross-attention; skip connections come from the image.

    With the cross-attention replaced by the identity it equals `monai.networks.nets.SwinUNETR` on the image.

    Args:
        out_channels: width of the output.
        encoder: `EncoderOptions`.

    Shape:
        - pair: `(B, 2C, X, Y, Z)`; output: `(B, out_channels, X, Y, Z)` logits
    """

    def __init__(self, out_channels: int = 1, **encoder: Any) -> None:
        options = EncoderOptions(**encoder)
        super().__init__(
            in_channels=options.channels_seen,
            out_channels=out_channels,
            feature_size=options.feature_size,
            window_size=options.window_size,
            depths=options.depths,
            num_heads=options.num_heads,
            use_checkpoint=options.use_checkpoint,
        )
        self.set_encoder(options, SwinEncoder(self.swinViT))
        use_channels_last(self)

    def forward(self, pair: Tensor) -> Tensor:
        hidden, mirrored = self.encode(pair)
        return self.decode(self.encoder_input(*halves(pair)), hidden, mirrored)

    def predict_both(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the pair, and of the pair with its halves swapped (the mirrored brain), from one encoder pass.

        They are decoded one after the other, in the memory of one.
        """
        image, mirrored = halves(pair)
        images = torch.cat([self.encoder_input(image, mirrored), self.encoder_input(mirrored, image)])
        both = list(zip(*(features.chunk(2) for features in (images, *self.swinViT(images))), strict=True))
        logits, swapped = (
            self.decode(own, hidden, counterparts[BOTTLENECK])
            for (own, *hidden), (_, *counterparts) in (both, both[::-1])
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
