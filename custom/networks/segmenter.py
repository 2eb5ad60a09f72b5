"""The segmenter: MONAI's Swin UNETR with the cross-attention at its bottleneck, and comparisons in its skips."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import SwinUNETR
from monai.utils import look_up_option
from torch import Tensor, nn

from custom.networks.channels_last import channels_last, use_channels_last
from custom.networks.comparison import Comparison
from custom.networks.encoder import SwinEncoder
from custom.networks.encoding import BOTTLENECK, EncoderOptions, SymmetryAwareEncoding, halves

Halves = tuple[Tensor, Tensor | None]
"""Of the image, and of its counterpart."""
READOUTS = ("places", "paper")
"""What the decoder is told of the counterpart: how every place differs from it, at five scales; or, as in the paper,
nothing but what the cross-attention adds at the bottleneck."""


class ComparingDecoder:
    """Mixin: the decoder of MONAI's Swin UNETR, under its names, and the comparisons of its skip connections."""

    comparisons: nn.ModuleList | None

    def decode(self, pair: Halves, scales: Sequence[Halves]) -> Tensor:
        """Features of each place, `(B, feature_size, X, Y, Z)`, of which the last layer makes logits.

        Args:
            pair: image and counterpart.
            scales: features of both at five scales; None where there are none.
        """
        image, *hidden = self.skips(pair, scales)
        x = self.encoder10(self.join(*scales[BOTTLENECK]))
        x = self.decoder5(x, hidden[3])
        x = self.decoder4(x, self.encoder4(hidden[2]))
        x = self.decoder3(x, self.encoder3(hidden[1]))
        x = self.decoder2(x, self.encoder2(hidden[0]))
        return self.decoder1(x, image)

    def skips(self, pair: Halves, scales: Sequence[Halves]) -> list[Tensor]:
        """What the skip connections carry: of the image, then its features at four scales."""
        image = self.encoder1(channels_last(self.encoder_input(*pair)))
        carried = [image, *(features for features, _ in scales[:BOTTLENECK])]
        if self.comparisons is None:
            return carried
        compared = zip(carried, self.comparisons, (pair, *scales[:BOTTLENECK]), strict=True)
        return [features + comparison(*both) for features, comparison, both in compared]


class SASwinUNETR(ComparingDecoder, SymmetryAwareEncoding, SwinUNETR):
    """MONAI's Swin UNETR whose bottleneck goes through the cross-attention, and whose skip connections compare.

    To each skip connection, from the image itself to features of X/16, is added how its places differ from their
    counterparts' (`Comparison`). With comparisons and cross-attention silenced, as they are at the start, it equals
    `monai.networks.nets.SwinUNETR` on the image.

    Args:
        out_channels: width of the output.
        readout: one of `READOUTS`; without the cross-attention nothing is compared.
        encoder: `EncoderOptions`.

    Shape:
        - pair: `(B, 2C, X, Y, Z)`; output: `(B, out_channels, X, Y, Z)` logits
    """

    def __init__(self, out_channels: int = 1, readout: str = "places", **encoder: Any) -> None:
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
        widths = [options.feature_size * 2**scale for scale in range(BOTTLENECK)]
        if look_up_option(readout, READOUTS) == "places" and self.symmetry is not None:
            compared = [Comparison(options.channels, options.feature_size, kernel_size=3)]
            self.comparisons = nn.ModuleList([*compared, *(Comparison(width, width) for width in widths)])
        else:
            self.comparisons = None
        use_channels_last(self)

    def forward(self, pair: Tensor) -> Tensor:
        scales = self.encode_scales(pair, range(BOTTLENECK + 1))
        return self.out(self.decode(halves(pair), scales))

    def predict_both(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the pair, and of the pair with its halves swapped (the mirrored brain), from one encoder pass.

        They are decoded one after the other, in the memory of one.
        """
        image, mirrored = halves(pair)
        images = torch.cat([self.encoder_input(image, mirrored), self.encoder_input(mirrored, image)])
        features = [both.chunk(2) for both in self.swinViT(images)]
        logits = self.out(self.decode((image, mirrored), features))
        return logits, self.out(self.decode((mirrored, image), [both[::-1] for both in features]))
