"""The classifier: encoder, cross-attention, and the evidence of each place for each class."""

from typing import Any

import torch
from monai.utils import look_up_option
from torch import Tensor

from custom.networks.encoding import EncoderOptions, SymmetryAwareEncoding, halves
from custom.networks.heads import mean_of_scales
from custom.networks.readouts import EVIDENCE


class SASwinClassifier(SymmetryAwareEncoding):
    """Encoder, cross-attention, and the evidence of each place for each class.

    The paper's head reads the joined features, pooled over the whole brain, in which a small lesion is diluted. By
    default every place is read by itself, at four scales, and each scale is trained by itself, so that coarse ones,
    which tell training subjects apart by their shape, do not keep the fine ones from learning; in the prediction the
    finer count more (`mean_of_scales`).

    In eval mode it gives `logits / temperature + class_bias`: buffers, saved with the weights, that do nothing until
    they are fitted to validation cases (`custom.evaluation.CalibrationFit`).

    Args:
        num_classes: width of the output.
        readout: one of `EVIDENCE`.
        encoder: `EncoderOptions`.

    Shape:
        - pair: `(B, 2C, X, Y, Z)`; output: `(B, num_classes)` log-probabilities, but for calibration; in training mode
          logits of each of S scales, `(B, num_classes, S)`, which `custom.support.GlobalBatchLoss` takes; the paper's
          readout has one
    """

    def __init__(self, num_classes: int = 2, readout: str = "places", **encoder: Any) -> None:
        super().__init__()
        options = EncoderOptions(**encoder)
        self.set_encoder(options, options.encoder())
        self.head = look_up_option(readout, EVIDENCE)(options, num_classes)
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("class_bias", torch.zeros(num_classes))

    def forward(self, pair: Tensor) -> Tensor:
        logits = self.logits(pair)
        if self.training:
            return logits
        return mean_of_scales(logits.log_softmax(1)) / self.temperature + self.class_bias

    def logits(self, pair: Tensor) -> Tensor:
        """Logits of each scale, `(B, num_classes, S)`."""
        scales = self.encode_scales(pair, self.head.scales)
        return self.head(scales, self.join(*scales[-1]), halves(pair)[0])
