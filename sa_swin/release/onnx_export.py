"""The network of a package as ONNX, compared with PyTorch on a random symmetric pair."""

import io
import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sa_swin.release.errors import ReleaseError

TOLERANCE = 1e-3
"""Largest difference from PyTorch that is accepted, as a share of the largest output."""


@dataclass(frozen=True)
class OnnxModel:
    """An export and how it compares.

    Args:
        content: the file.
        shape: of the input `image`, fixed.
        difference: largest absolute difference from PyTorch.
        largest: largest absolute output of PyTorch.
    """

    content: bytes
    shape: tuple[int, ...]
    difference: float
    largest: float


def export(network: nn.Module, channels: int, size: Sequence[int]) -> OnnxModel:
    """Export through `torch.onnx` (dynamo) and compare.

    Args:
        network: in eval mode, on the CPU.
        channels: of the symmetric pair, 2C.
        size: X, Y, Z that the network sees; the export is fixed to it, and to a batch of one.

    Raises:
        ReleaseError: the packages for it are not installed, or onnxruntime gives other numbers than PyTorch.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ReleaseError(f"{error}: install sa-swin[release], or build with --onnx False") from error
    pair = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
    content = _exported(network, pair)
    with torch.no_grad():
        expected = network(pair).numpy()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": pair.numpy()})[0]
    difference, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    if not difference <= TOLERANCE * largest:
        raise ReleaseError(f"the ONNX export differs from PyTorch by {difference:.2g} at outputs up to {largest:.2g}")
    return OnnxModel(content, tuple(pair.shape), difference, largest)


def _exported(network: nn.Module, pair: torch.Tensor) -> bytes:
    """The ONNX file, without the exporter's notes: they hold the paths of the machine."""
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        program = torch.onnx.export(
            network, (pair,), dynamo=True, input_names=["image"], output_names=["pred"], verbose=False
        )
        program.save(path, external_data=False)
        model = onnx.load(path)
    _strip(model)
    stream = io.BytesIO()
    onnx.save(model, stream)
    return stream.getvalue()


def _strip(message: object) -> None:
    """Remove notes and documentation strings from a protobuf message and all below it."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                _strip(item)
