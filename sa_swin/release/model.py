"""The weights of a package: checked against the network of its own configs, and written in three formats."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from custom.weights.provenance import Record
from custom.weights.settings import STATED, as_metadata, carrying, settings_in, sizes
from custom.weights.transfer import load_checkpoint, transfer
from sa_swin.release.errors import ReleaseError


def settings_of(weights: Path, path: Path | None = None) -> dict[str, Any]:
    """Settings that weights were trained with: those that they carry, or those of a file, and what their tensors tell.

    Args:
        weights: a checkpoint.
        path: JSON object of settings, for weights that carry none.

    Raises:
        ReleaseError: no such file, not a JSON object, or nothing that tells of the weights' input.
        WeightsError: not a checkpoint.
    """
    found = settings_in(weights) if path is None else _object(path)
    settings = sizes(load_checkpoint(weights)) | (found or {})
    if missing := [name for name in STATED if name not in settings]:
        raise ReleaseError(
            f"{path or weights} does not say what the weights were trained with: no {', '.join(missing)}; give a JSON "
            "file with these settings by --settings"
        )
    return settings


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} holds no settings: {error}") from error
    if not isinstance(content, dict):
        raise ReleaseError(f"{path} should hold an object of settings, found {type(content).__name__}")
    return content


def network_of(config: Mapping[str, Any]) -> nn.Module:
    """The network that a config defines, in eval mode, on the CPU."""
    return ConfigParser(dict(config)).get_parsed_content("network_def").eval()


def fill(network: nn.Module, weights: Path) -> dict[str, Tensor]:
    """Put a checkpoint into the network and return what is to be released: one contiguous tensor a name, on the CPU.

    Raises:
        WeightsError: a checkpoint with pickled code or values that are not finite, or one that does not fit.
    """
    transfer(network, load_checkpoint(weights), parts=("",), minimum=1.0)
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}


def as_pt(state: Mapping[str, Tensor], records: Sequence[Record], settings: Mapping[str, Any]) -> bytes:
    """`model.pt`: flat, with the records of what the weights have seen, and the settings of their training."""
    stream = io.BytesIO()
    torch.save(carrying(state, seen=list(records), settings=dict(settings)), stream)
    return stream.getvalue()


def as_safetensors(state: Mapping[str, Tensor], records: Sequence[Record], settings: Mapping[str, Any]) -> bytes:
    """`model.safetensors`: the same tensors, records and settings."""
    from safetensors.torch import save  # only to build a package, not to look at one

    return save(dict(state), metadata=as_metadata(seen=list(records), settings=dict(settings)))
