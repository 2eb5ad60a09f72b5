"""The weights of a package: checked against the network of its own configs, and written in three formats."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from custom.weights.conversion import sizes
from custom.weights.provenance import Record, as_metadata, with_records
from custom.weights.transfer import load_checkpoint, transfer
from sa_swin.release.errors import ReleaseError


@dataclass(frozen=True)
class Settings:
    """Settings that go with weights.

    Args:
        values: name to value, as in the bundle's configs.
        recorded: whether the training recorded them; otherwise they are the sizes that the tensors give away.
    """

    values: dict[str, Any]
    recorded: bool


def settings_of(weights: Path, tensors: Mapping[str, Tensor], path: Path | None = None) -> Settings:
    """Settings that go with weights: from `path`, from `settings.json` beside the weights, or sizes of the tensors.

    Raises:
        ReleaseError: no such file, or not a JSON object.
    """
    if path is None and not (weights.parent / "settings.json").is_file():
        return Settings(sizes(tensors), recorded=False)
    path = path or weights.parent / "settings.json"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} holds no settings: {error}") from error
    if not isinstance(content, dict):
        raise ReleaseError(f"{path} should hold an object of settings, found {type(content).__name__}")
    return Settings(content, recorded=True)


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


def as_pt(state: Mapping[str, Tensor], records: Sequence[Record]) -> bytes:
    """`model.pt`: flat, with the records of what the weights have seen."""
    stream = io.BytesIO()
    torch.save(with_records(state, records), stream)
    return stream.getvalue()


def as_safetensors(state: Mapping[str, Tensor], records: Sequence[Record]) -> bytes:
    """`model.safetensors`: the same tensors and records."""
    from safetensors.torch import save  # only to build a package, not to look at one

    return save(dict(state), metadata=as_metadata(records))  # one entry: safetensors writes several in random order
