"""Weight transfer: what of a checkpoint went into a network, stated in numbers, and an error when too little did.

Understands our own checkpoints, MONAI's `SwinUNETR` and self-supervised ones, those of BrainSegFounder and of the
reference repository; `custom.weights.conversion` writes them under our names.
"""

import hashlib
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks import copy_model_state
from torch import Tensor, nn

from custom.support.errors import UserError
from custom.weights.wrapped import described, dictionaries, networks_in, unknown_kinds, unpickled

logger = logging.getLogger(__name__)

PRETRAINED_PARTS = ("swinViT.", "symmetry.")
"""Parameters that pretraining hands on: the encoder and the cross-attention."""
DECODER = ("encoder", *(f"decoder{level}." for level in range(1, 6)), "comparisons")
"""Prefixes of what a segmenter takes over as well, where the weights have it."""
LAST_LAYERS = ("dense_head.", "places_head.")
"""Of a dense pretraining; what a lesion is, a segmenter of two classes takes over from them."""
DENSE = (*DECODER, *LAST_LAYERS)
"""All of what a dense pretraining adds."""

SEEING = {
    "swinViT.patch_embed.proj.weight": 1,
    "encoder1.layer.conv1.conv.weight": 1,
    "encoder1.layer.conv3.conv.weight": 1,
    "comparisons.0.0.weight": 2,
}
"""Convolutions of the image itself, and how often they see its channels."""

_RENAMED = (
    (r"^(?:swin_vit|swinvit|backbone)\.", "swinViT."),
    (r"^(patch_embed\.|layers[1-4]c?\.)", r"swinViT.\1"),  # an encoder saved by itself: MONAI's model_swinvit.pt
    (r"^encoder\.(patch_embed\.)", r"swinViT.\1"),  # MONAI's ssl_pretrained_weights.pth
    (r"^encoder\.(layers[1-4])\.0\.0\.", r"swinViT.\1.0."),
    (r"\.mlp\.fc([12])\.", r".mlp.linear\1."),
    # The reference repository's cross-attention is a BERT layer.
    (r"^symmetryAwareTX\.(?:layer\.0\.)?", "symmetry."),
    (r"^symmetry\.attention\.output\.dense\.", "symmetry.attention.out_proj."),
    (r"^symmetry\.attention\.output\.LayerNorm\.", "symmetry.norm1."),
    (r"^symmetry\.crossattention\.self\.query\.", "symmetry.cross_attention.to_q."),
    (r"^symmetry\.crossattention\.self\.key\.", "symmetry.cross_attention.to_k."),
    (r"^symmetry\.crossattention\.self\.value\.", "symmetry.cross_attention.to_v."),
    (r"^symmetry\.crossattention\.output\.dense\.", "symmetry.cross_attention.out_proj."),
    (r"^symmetry\.crossattention\.output\.LayerNorm\.", "symmetry.norm2."),
    (r"^symmetry\.intermediate\.dense\.", "symmetry.mlp.linear1."),
    (r"^symmetry\.output\.dense\.", "symmetry.mlp.linear2."),
    (r"^symmetry\.output\.LayerNorm\.", "symmetry.norm3."),
)

_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS = [
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),  # numpy 1
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
]
"""A best score that was saved as a numpy number, as MONAI's BraTS tutorial and BrainSegFounder do."""


class WeightsError(UserError):
    """A checkpoint that cannot be read, or that does not fit the network."""


@dataclass(frozen=True)
class Transfer:
    """What a checkpoint gave to a network.

    Args:
        matched: names of the network's tensors that were set.
        missing: wanted tensors that the checkpoint lacks, or has in another shape.
        unused: tensors of the checkpoint that found no place.
        further: names of the network's tensors that were set beside the wanted ones.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    further: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the wanted tensors that were set, 0 to 1."""
        return len(self.matched) / max(1, len(self.matched) + len(self.missing))

    def __str__(self) -> str:
        text = f"{len(self.matched)}/{len(self.matched) + len(self.missing)} tensors matched"
        text += f", and {len(self.further)} beside them" if self.further else ""
        for what, names in (("not set", self.missing), ("not used", self.unused)):
            if names:
                text += f"; {what}: {', '.join(_shortened(names))}"
        return text


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a network in a checkpoint under this project's names, wherever they lie in it.

    Args:
        path: `.pt`, `.pth` or `.safetensors`; flat, in dictionaries inside each other, in wrappers.

    Raises:
        WeightsError: no such file, not a checkpoint, no tensors, or values that are not finite.
    """
    content = read_checkpoint(path)
    found = networks_in(content)
    if len(found) > 1:
        names = ", ".join(map(str, found[1:]))
        logger.warning("%s holds several networks: %s is taken, not %s", path, found[0], names)
    tensors = found[0].tensors if found else max((t for _, t in dictionaries(content)), key=len, default={})
    if not tensors:
        raise WeightsError(f"{path} holds no tensors, but {described(content)}")
    spoilt = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if spoilt:
        raise WeightsError(f"{path} holds values that are not finite, {len(spoilt)} tensors, first {spoilt[0]}")
    return renamed(tensors)


def weights_digest(path: str | Path) -> str:
    """SHA-256 of the weights in a checkpoint: the same for `.pt` and `.safetensors`, nested or flat, in any order."""
    out = hashlib.sha256()
    for name, tensor in sorted(load_checkpoint(path).items()):
        if not is_index(name):
            out.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            out.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return out.hexdigest()


def read_checkpoint(path: str | Path) -> Any:
    """Content of a checkpoint as it was saved; only tensors, numbers, text and their containers are ever unpickled.

    In the place of any other object, as of settings that were saved beside the weights, stands an `Unknown`.

    Raises:
        WeightsError: no such file, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return _loaded(path)
    except Exception as error:  # a damaged file makes the unpickler stumble in many ways
        words = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or "it ends too early"
        if words.startswith("Weights only load failed"):  # what torch then says of its options helps nobody here
            words = "it is damaged, or was not written by torch.save; get the file anew"
        raise WeightsError(f"{path} is not a checkpoint of tensors: {words.splitlines()[0]}") from error


def _loaded(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path):  # what torch wrote before 1.6 has other ways to run code
            raise
        content = unpickled(path)
    logger.warning("%s: not loaded beside the tensors: %s", path, ", ".join(unknown_kinds(content)))
    return content


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under this project's names; separate query, key and value of self-attention become one."""
    out = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    for kind in ("weight", "bias"):
        parts = [f"symmetry.attention.self.{part}.{kind}" for part in ("query", "key", "value")]
        if all(part in out for part in parts):
            out[f"symmetry.attention.qkv.{kind}"] = torch.cat([out.pop(part) for part in parts])
    return out


def transfer(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    parts: Sequence[str] = PRETRAINED_PARTS,
    minimum: float = 0.8,
    optional: Sequence[str] = (),
    saw_map: bool | None = None,
) -> Transfer:
    """Copy pretrained tensors into a network, in place.

    With the last layers of a dense pretraining a segmenter of two classes takes over the lesion's logit.

    Args:
        network: one of `custom.networks`, wrapped for distributed training or not.
        tensors: from `load_checkpoint`.
        parts: prefixes of the network's tensors that are wanted; the heads stay as they are.
        minimum: smallest share of the wanted tensors that must match; at 1 none of these parts may be left over either,
            so that a network is not run without, say, the cross-attention it was trained with.
        optional: prefixes of further tensors, which are taken where they fit.
        saw_map: whether the weights saw the asymmetry map: they then go into networks with more contrasts, too, with
            and without the map, see `with_channels_of`; None: only where all channels are the same.

    Raises:
        WeightsError: when less than `minimum` matched; the network is left unchanged.
    """
    module = getattr(network, "module", network)
    wanted = [name for name in module.state_dict() if name.startswith(tuple(parts)) and not is_index(name)]
    taken = (*parts, *optional)
    offered = {name: tensor for name, tensor in tensors.items() if name.startswith(taken) and not is_index(name)}
    if saw_map is not None and module.variant != "channel":
        offered = with_channels_of(offered, module.state_dict(), saw_map, module.asymmetry_map)
    lesion = lesion_layer(offered, module.state_dict())
    state, changed, _ = copy_model_state(module, offered | lesion, inplace=False)
    used = {*changed, *(name for name in tensors if lesion and name.startswith(LAST_LAYERS))}
    report = Transfer(
        matched=tuple(sorted(name for name in set(changed) if name.startswith(tuple(parts)))),
        missing=tuple(name for name in wanted if name not in changed),
        unused=tuple(name for name in tensors if name not in used and not is_index(name)),
        further=tuple(sorted(name for name in set(changed) if not name.startswith(tuple(parts)))),
    )
    left_over = any(name.startswith(tuple(parts)) for name in report.unused)
    if report.share < minimum or (minimum == 1 and left_over):
        raise WeightsError(f"{report}; at least {minimum:.0%} must match: other sizes, or not a Swin encoder?")
    module.load_state_dict(state)
    return report


def with_channels_of(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], map_before: bool, map_now: bool
) -> dict[str, Tensor]:
    """The same tensors; those that see the image, with its channels and its asymmetry map where they are wanted.

    Further channels get zeros; a map that is not wanted is dropped. Fewer contrasts than there were are left as they
    are, and do not match.

    Args:
        tensors: of the weights.
        wanted: of the network.
        map_before: the weights' last channel is the asymmetry map.
        map_now: the network's is.
    """
    out = dict(tensors)
    for name, times in SEEING.items():
        if name not in tensors or name not in wanted:
            continue
        weight, target = tensors[name], wanted[name]
        old, new = weight.shape[1] // times - map_before, target.shape[1] // times - map_now
        if (weight.shape[0], *weight.shape[2:]) != (target.shape[0], *target.shape[2:]) or old > new:
            continue
        source = weight.unflatten(1, (times, -1))
        fitted = weight.new_zeros(target.shape).unflatten(1, (times, -1))
        fitted[:, :, :old] = source[:, :, :old]
        if map_before and map_now:
            fitted[:, :, -1] = source[:, :, -1]
        out[name] = fitted.flatten(1, 2)
    return out


def lesion_layer(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Last layer of a segmenter of two classes, from a dense pretraining: background 0, lesion its logit there."""
    out = {}
    for kind in ("weight", "bias"):
        source, target = tensors.get(f"dense_head.conv.conv.{kind}"), wanted.get(f"out.conv.conv.{kind}")
        if source is not None and target is not None and target.shape == (2, *source.shape[1:]):
            out[f"out.conv.conv.{kind}"] = torch.stack([torch.zeros_like(source[0]), source[0]])
    return out


def is_index(name: str) -> bool:
    """Buffers that follow from the window size; they are not weights."""
    return name.endswith("relative_position_index")


def _shortened(names: Sequence[str], limit: int = 8) -> list[str]:
    return [*names[:limit], f"and {len(names) - limit} more"] if len(names) > limit else list(names)
