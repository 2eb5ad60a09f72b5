"""The floating-point precision of a run: one knob for training and inference, on GPUs and CPUs."""

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from custom.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Prediction = Tensor | dict[str, Tensor]


def working_dtype(precision: str, device: torch.device | str) -> torch.dtype:
    """What products and convolutions are computed in.

    Args:
        precision: `fp32`, `bf16`, `fp16`, or `auto`: bf16 on a GPU that computes in it, fp16 on an older one, and fp32
            on a CPU, of which few compute in bf16.
        device: of the network.

    Raises:
        UserError: on another precision, and on fp16 without a GPU, since its loss must be scaled.
    """
    on_cpu = torch.device(device).type == "cpu"
    if precision == "auto":
        if on_cpu:
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if precision not in PRECISIONS or (precision == "fp16" and on_cpu):
        raise UserError(f"precision must be auto, fp32 or bf16, or on a GPU fp16; got '{precision}' on {device}")
    return PRECISIONS[precision]


def needs_loss_scale(precision: str, device: torch.device | str) -> bool:
    """Whether gradients would underflow: the `amp` of MONAI's trainer, which then scales the loss."""
    return working_dtype(precision, device) == torch.float16


def autocast(precision: str, device: torch.device | str) -> torch.autocast:
    """The context in which a network runs in that precision, where it is safe."""
    dtype = working_dtype(precision, device)
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)


class MixedPrecision(Inferer):
    """Run another inferer in a precision, and give its result in fp32, in which losses and probabilities are computed.

    (MONAI's engines know mixed precision on GPUs alone.)

    Args:
        inferer: MONAI's, or one of `custom.inferers`.
        precision: as in `working_dtype`.
        device: of the network.

    Raises:
        UserError: on a precision that there is not, at once.
    """

    def __init__(self, inferer: Inferer, precision: str, device: torch.device | str) -> None:
        super().__init__()
        working_dtype(precision, device)
        self.inferer, self.precision = inferer, precision

    def __call__(self, inputs: Tensor, network: Callable[..., Prediction], *args: Any, **kwargs: Any) -> Prediction:
        with autocast(self.precision, inputs.device):
            result = self.inferer(inputs, network, *args, **kwargs)
        return {name: value.float() for name, value in result.items()} if isinstance(result, dict) else result.float()
