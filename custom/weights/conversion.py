"""Published weights under this project's names: what matched a network, what had to be reshaped, what was left.

`sa-swin weights convert SOURCE --to TASK --output FILE`. The result holds what was found in the source and
nothing that was drawn at random; it goes into a training by `--pretrained FILE`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from custom.networks.classifier import SASwinClassifier
from custom.networks.pretrainer import SASwinPretrainer
from custom.networks.segmenter import SASwinUNETR
from custom.support.files import write_whole
from custom.weights.settings import settings_in, sizes
from custom.weights.transfer import PRETRAINED_PARTS, WeightsError, is_index, load_checkpoint

TARGETS: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "encoder": (SASwinPretrainer, ("swinViT.",)),
    "pretrain": (SASwinPretrainer, ("",)),
    "classify": (SASwinClassifier, ("",)),
    "segment": (SASwinUNETR, ("",)),
}
"""What weights can be converted to: the network, and the prefixes of its tensors that are wanted."""

INPUT_LAYERS = (
    "swinViT.patch_embed.proj.weight",
    "encoder1.layer.conv1.conv.weight",
    "encoder1.layer.conv3.conv.weight",
)
"""Convolutions that see the image itself, `(out, in_channels, X, Y, Z)`."""


@dataclass(frozen=True)
class ConvertedTensor:
    """One tensor of a conversion.

    Args:
        status: `matched`, `reshaped`, `left` (of the source, has no place), or `not set` (of the network).
        name: under this project's names.
        source, target: shapes; None where it does not exist.
        note: how it was reshaped, or why it was left.
    """

    status: str
    name: str
    source: tuple[int, ...] | None
    target: tuple[int, ...] | None
    note: str = ""


def convert(
    tensors: Mapping[str, Tensor], to: str, in_channels: int = 1, minimum: float = 0.8
) -> tuple[dict[str, Tensor], list[ConvertedTensor]]:
    """Fit tensors to a network of their own sizes with other input channels.

    Args:
        tensors: from `custom.weights.load_checkpoint`.
        to: one of `TARGETS`.
        in_channels: of the image, without its mirrored counterpart, that the converted weights take.
        minimum: smallest share of the encoder that must be found.

    Returns:
        The converted tensors, and a row for every tensor of the source and of the network.

    Raises:
        WeightsError: an unknown target, or no Swin encoder in the source.
    """
    if to not in TARGETS:
        raise WeightsError(f"--to should be one of {', '.join(TARGETS)}, got {to}")
    offered = {name: tensor for name, tensor in tensors.items() if not is_index(name)}
    wanted = _shapes(to, offered, in_channels)
    rows = [_row(name, offered.get(name), shape) for name, shape in wanted.items()]
    rows += [
        ConvertedTensor("left", name, tuple(tensor.shape), None, "no such tensor in the network")
        for name, tensor in offered.items()
        if name not in wanted
    ]
    used = [row for row in rows if row.status in ("matched", "reshaped")]
    encoder = [name for name in wanted if name.startswith(PRETRAINED_PARTS[0])]
    found = sum(row.name in encoder for row in used)
    if found < minimum * len(encoder):
        raise WeightsError(
            f"only {found} of {len(encoder)} tensors of a Swin encoder were found; not one, or of another kind?"
        )
    return {row.name: _fitted(row, offered[row.name]) for row in used}, rows


def _shapes(to: str, tensors: Mapping[str, Tensor], in_channels: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what is wanted: those of a network of the source's sizes."""
    network, parts = TARGETS[to]
    found = sizes(tensors)
    if not {"feature_size", "window_size"} <= found.keys():
        raise WeightsError("no Swin encoder among the tensors: no patch embedding, or no window attention")
    names = ["feature_size", "window_size", "depths", "num_heads"]
    names += ["readout", *{"segment": [], "classify": ["num_classes"]}.get(to, ["embedding_size"])]
    arguments = {name: found[name] for name in names if name in found} | {"in_channels": in_channels}
    if to == "segment" and "num_classes" in found:
        arguments["out_channels"] = found["num_classes"]
    state = network(**arguments).state_dict()
    return {n: tuple(t.shape) for n, t in state.items() if n.startswith(parts) and not is_index(n)}


def _row(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> ConvertedTensor:
    if tensor is None:
        return ConvertedTensor("not set", name, None, shape, "the source has none")
    found = tuple(tensor.shape)
    if found == shape:
        return ConvertedTensor("matched", name, found, shape)
    if name in INPUT_LAYERS and found[:1] + found[2:] == shape[:1] + shape[2:]:
        note = "sum over the input channels" + (f", shared among {shape[1]}" if shape[1] > 1 else "")
        return ConvertedTensor("reshaped", name, found, shape, note)
    return ConvertedTensor("left", name, found, shape, "another shape")


def _fitted(row: ConvertedTensor, tensor: Tensor) -> Tensor:
    return input_channels(tensor, row.target[1]) if row.status == "reshaped" else tensor.detach().clone()


def input_channels(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weights `(out, in, ...)` for another number of input channels.

    The sum over the input channels, shared equally among the new ones: an image given in every channel is answered as
    it was before. The mean would answer it `in` times more weakly, and nothing between the patch embedding and the
    encoder's residual stream normalises that away.

    References:
        Inflation of filters in Carreira, Zisserman: Quo Vadis, Action Recognition?, CVPR 2017, section 2.4.
    """
    total = weight.sum(dim=1, keepdim=True) / channels
    return total.expand(-1, channels, *(-1,) * (weight.ndim - 2)).contiguous()


def table(rows: list[ConvertedTensor]) -> str:
    """A conversion as text: tensors that matched as counts per part, every other one by itself."""
    lines = []
    matched: dict[str, int] = {}
    for row in (r for r in rows if r.status == "matched"):
        part = ".".join(row.name.split(".")[: 2 if row.name.startswith("swinViT") else 1])
        matched[part] = matched.get(part, 0) + 1
    lines += [f"{'matched':9} {count:4} tensors  {part}" for part, count in matched.items()]
    for status in ("reshaped", "left", "not set"):
        for row in (r for r in rows if r.status == status):
            shapes = " -> ".join(str(list(shape)) for shape in (row.source, row.target) if shape is not None)
            lines.append(f"{status:9} {row.name}  {shapes}  {row.note}")
    counts = {s: sum(row.status == s for row in rows) for s in ("matched", "reshaped", "left", "not set")}
    return "\n".join([*lines, ", ".join(f"{count} {status}" for status, count in counts.items())]) + "\n"


def convert_file(source: Path, to: str, output: Path, in_channels: int = 1) -> str:
    """Convert a checkpoint, write it, and return the table.

    Args:
        source: `.pt`, `.pth` or `.safetensors`.
        to: as in `convert`.
        output: `.pt` or `.safetensors`.
        in_channels: as in `convert`.

    Raises:
        WeightsError: as `load_checkpoint` and `convert`, or another kind of output.
    """
    if output.suffix not in (".pt", ".safetensors"):
        raise WeightsError(f"--output should end in .pt or .safetensors, got {output}")
    tensors = load_checkpoint(source)
    told = settings_in(source) or {}
    if told.get("asymmetry_map"):
        raise WeightsError(f"{source} sees the asymmetry map, too, and is not converted; start from it by --pretrained")
    if told.get("symmetry") == "channel":
        raise WeightsError(
            f"{source} sees the mirror image as channels (symmetry channel), which no other network of ours does, "
            "and is not converted; train from it with --pretrained and --symmetry channel"
        )
    converted, rows = convert(tensors, to, in_channels)
    content = {name: tensor.contiguous() for name, tensor in converted.items()}
    write_whole(output, lambda path: _save(content, path, output.suffix))
    return table(rows)


def _save(content: Mapping[str, Tensor], path: Path, suffix: str) -> None:
    if suffix == ".pt":
        with path.open("wb") as file:  # of a path, torch.save would write the name into the file
            return torch.save(content, file)
    from safetensors.torch import save  # optional where nothing else needs it

    return path.write_bytes(save(content))
