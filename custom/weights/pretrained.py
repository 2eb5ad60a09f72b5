"""Pretrained weights by name: a file, a package or a bundle's folder, those that come with sa-swin, or a hub's."""

import re
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from custom.weights.settings import ENCODER, Weights, sizes
from custom.weights.transfer import DENSE, PRETRAINED_PARTS, WeightsError, load_checkpoint, transfer

FOLDER = Path(__file__).resolve().parents[2] / "weights"
SHIPPED = {
    "default": FOLDER / "sa_swin_default.safetensors",
    "painted": FOLDER / "sa_swin_painted.safetensors",
}
"""Pretrained on painted brains alone, `default` with the asymmetry map; beside `custom` in the repository."""
FILES = ("model.safetensors", "model.pt", "models/model.safetensors", "models/model.pt")

Network = TypeVar("Network", bound=nn.Module)


def pretrained_file(name: str | Path) -> str:
    """The file of pretrained weights.

    Args:
        name: a file; a folder with one of `FILES`; `default` or `painted`, the weights that come with sa-swin; or
            OWNER/NAME of a Hugging Face repository, which is downloaded. Empty stays empty.

    Raises:
        WeightsError: nothing of the kind.
    """
    path = Path(name)
    if not str(name) or path.is_file():
        return str(name)
    if shipped := SHIPPED.get(str(name)):
        if shipped.is_file():
            return str(shipped)
        raise WeightsError(f"no {shipped}: the {name} weights come with the repository; give the path of a file")
    if path.is_dir():
        if found := [path / file for file in FILES if (path / file).is_file()]:
            return str(found[0])
        raise WeightsError(f"{path} holds none of {', '.join(FILES)}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) and path.suffix not in (".pt", ".pth", ".ckpt", ".safetensors"):
        return from_hub(str(name))
    return str(name)  # what loads it says that there is none


def from_hub(repository: str) -> str:
    """Download `model.safetensors` of a Hugging Face repository, OWNER/NAME.

    Raises:
        WeightsError: huggingface_hub is not there, or the download fails.
    """
    try:
        from huggingface_hub import hf_hub_download  # only who asks for it needs it
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise WeightsError(
            f"no file {repository}; to take it from Hugging Face, install huggingface_hub: pip install huggingface_hub"
        ) from error
    try:
        return hf_hub_download(repository, "model.safetensors")
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"no file or folder {repository}, and no repository of Hugging Face: {reason}") from error


def from_pretrained(network: type[Network], name: str | Path, **options: Any) -> Network:
    """A network of the sizes that pretrained weights say, with encoder, cross-attention and, if it fits, decoder.

    Args:
        network: class of `custom.networks`, such as `SASwinUNETR`.
        name: as in `pretrained_file`.
        options: further arguments of the network, such as `out_channels`.

    Raises:
        WeightsError: no such weights, or of other sizes than `options`.

    Examples:
        >>> from custom.networks import SASwinUNETR
        >>> segmenter = from_pretrained(SASwinUNETR, "painted", out_channels=2)  # doctest: +SKIP
    """
    path = pretrained_file(name)
    tensors = load_checkpoint(path)
    told = Weights(path, (*ENCODER, "in_channels", "asymmetry_map"), optional=True).settings
    if not told:  # published weights; that they have no cross-attention does not say that the network shall have none
        told = {name: size for name, size in sizes(tensors).items() if name in {*ENCODER, "in_channels"} - {"symmetry"}}
    made = network(**{**told, **options})
    compares = made.symmetry is not None and any(name.startswith("symmetry.") for name in tensors)
    minimum, saw_map = 1.0 if compares else 0.8, bool(told.get("asymmetry_map"))
    transfer(made, tensors, PRETRAINED_PARTS, minimum, DENSE, saw_map)
    return made
