"""The floating-point precision of a run: one knob for training and inference, on GPUs and CPUs."""

from collections.abc import Callable
from typing import Any

import ignite.distributed as idist
import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from custom.support.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Prediction = Tensor | dict[str, Tensor]


def working_dtype(precision: str, device: torch.device | str) -> torch.dtype:
    """What products and convolutions are computed in.

    Args:
        precision: `fp32`, `bf16`, `fp16`, or `auto`: bf16 on a GPU that computes in it, fp16 on an older one (before
            Ampere, compute capability 8.0), and fp32 on a CPU, of which few compute in bf16.
        device: of the network.

    Raises:
        UserError: on another precision, and on fp16 without a GPU, since its loss must be scaled.
    """
    on_gpu = torch.device(device).type != "cpu" and torch.cuda.is_available()
    if precision == "auto":
        if not on_gpu:
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if precision not in PRECISIONS or (precision == "fp16" and not on_gpu):
        raise UserError(f"precision must be auto, fp32 or bf16, or on a GPU fp16; got '{precision}' on {device}")
    return PRECISIONS[precision]


def needs_loss_scale(precision: str, device: torch.device | str) -> bool:
    """Whether gradients would underflow: the `amp` of MONAI's trainer, which then scales the loss.

    All processes of a training must ask.

    Raises:
        UserError: where they do not agree, so that scaled gradients would be averaged with others.
    """
    scaled = working_dtype(precision, device) == torch.float16
    if len({idist.all_reduce(int(scaled), op) for op in ("MIN", "MAX")}) > 1:
        raise UserError("some GPUs of this training compute in bf16 and some do not; give --precision fp32 or fp16")
    return scaled


def autocast(precision: str, device: torch.device | str) -> torch.autocast:
    """The context in which a network runs in that precision, where it is safe."""
    dtype = working_dtype(precision, device)
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)


def check_device(network: Callable[..., Any], device: torch.device) -> None:
    """Refuse a network that lies elsewhere than its input, before an operation of torch does in words of its own.

    Raises:
        UserError: with both places.
    """
    tensor = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    if tensor is not None and tensor.device != device:
        raise UserError(
            f"the network lies on {tensor.device} and its input on {device}: in the config, move it where `device` "
            "says, as `network` and `validate::network` of train.yaml do"
        )


class MixedPrecision(Inferer):
    """Run another inferer in a precision, and give its result in fp32, in which losses and probabilities are computed.

    (MONAI's engines know mixed precision on GPUs alone.)

    Args:
        inferer: MONAI's, or one of `custom.evaluation.inferers`.
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
        check_device(network, inputs.device)
        with autocast(self.precision, inputs.device):
            result = self.inferer(inputs, network, *args, **kwargs)
        return {name: value.float() for name, value in result.items()} if isinstance(result, dict) else result.float()
