"""Networks of MONAI that are no Swin and see no counterpart: what a variant of a study is held against, too.

Their input is the symmetric pair `(B, 2C, X, Y, Z)` of all networks here; they read its first half.
"""

import torch
from torch import Tensor, nn

from custom.networks.encoding import halves


class ImageAlone(nn.Module):
    """A segmenter that reads the image alone.

    Args:
        network: of `(B, C, X, Y, Z)`, such as `monai.networks.nets.SegResNet`; its logits are the output.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pair: Tensor) -> Tensor:
        return self.network(halves(pair)[0])


class ImageAloneClassifier(ImageAlone):
    """A classifier that reads the image alone, calibrated as `custom.networks.SASwinClassifier` is.

    Args:
        network: of `(B, C, X, Y, Z)`, such as `monai.networks.nets.DenseNet121`, to logits `(B, num_classes)`.
        num_classes: width of the output.

    Shape:
        - output: `(B, num_classes)` log-probabilities, but for calibration; in training mode logits
          `(B, num_classes, 1)`
    """

    def __init__(self, network: nn.Module, num_classes: int = 2) -> None:
        super().__init__(network)
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("class_bias", torch.zeros(num_classes))

    def forward(self, pair: Tensor) -> Tensor:
        logits = super().forward(pair)
        if self.training:
            return logits[..., None]
        return logits.log_softmax(1) / self.temperature + self.class_bias
