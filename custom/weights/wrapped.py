"""Tensors out of what trainings save around them: read without running any of it, and found wherever they lie.

A *wrapper* is what stands before a tensor's own name, `module.`, `model._orig_mod.` or `student.backbone.`; a *place*
is the way to a dictionary inside others, `("state_dict", "teacher")`.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

DEEPEST = 4
"""Dictionaries inside each other that are searched."""
DEEPEST_MODULE = 16
AVERAGED = re.compile(r"ema|teacher|averag|swa")
"""A word for weights that are an average over the training: what its authors evaluate, so what is taken first."""
INSIDE = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What distributed and compiled networks put into names, also in the middle of them."""
ENCODER = re.compile(r"((?:.*?\.)??)(?:(?:swinViT|swin_vit|swinvit|backbone|encoder)\.)?patch_embed\.proj\.weight")
"""The name of the tensor that every Swin encoder has, with its wrapper."""
OF_THE_NETWORK = re.compile(r"(swinViT|swin_vit|swinvit|backbone|symmetry\w*|encoder\d*|decoder\d|out|layers[1-4]c?)\.")

_HARMLESS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, grad, hooks, state: data,
}


class Unknown(dict):
    """An object of a class that is not loaded: it takes all that a pickle gives it, and does nothing with it."""

    kind = "unknown"
    __hash__ = object.__hash__

    def __new__(cls, *args: Any, **kwargs: Any) -> "Unknown":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)

    def __call__(self, *args: Any, **kwargs: Any) -> "Unknown":
        return Unknown()

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...


class _Unpickler(pickle.Unpickler):
    """Makes tensors and their containers; whatever else a pickle names becomes an `Unknown`, and nothing is imported.

    A pickle can set attributes of what it names, so it gets a function of its own each time.
    """

    def find_class(self, module: str, name: str) -> Any:
        known = _HARMLESS.get((module, name))
        if known is None:
            return type(name, (Unknown,), {"kind": f"{module}.{name}"})
        return known if isinstance(known, type) else lambda *args: known(*args)


def unpickled(path: Path) -> Any:
    """Content of a file of `torch.save`, with an `Unknown` in the place of all that is no tensor or container."""
    module = SimpleNamespace(Unpickler=_Unpickler, load=None, __name__="pickle")
    return torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)


@dataclass(frozen=True)
class Found:
    """A network's tensors in a checkpoint, without their wrapper, and where they were."""

    place: tuple[str, ...]
    wrapper: str
    tensors: dict[str, Tensor]

    def __str__(self) -> str:
        return "/".join([*self.place, self.wrapper.rstrip(".")]).strip("/") or "the whole file"

    def rank(self) -> tuple[int, bool]:
        """How much of a network it is, and whether it is an average: the larger, the better."""
        return sum(map(bool, map(OF_THE_NETWORK.match, self.tensors))), bool(AVERAGED.search(str(self).lower()))


def networks_in(content: Any) -> list[Found]:
    """Every network with a Swin encoder in a checkpoint, the one to take first.

    Of several that are as whole, an average over the training (EMA, a teacher) comes before the weights of its end.
    """
    found = []
    for place, tensors in dictionaries(content):
        plain = {INSIDE.sub("", name): tensor for name, tensor in tensors.items()}
        wrappers = dict.fromkeys(match[1] for name in plain if (match := ENCODER.fullmatch(name)))
        for wrapper in wrappers:
            own = {name.removeprefix(wrapper): plain[name] for name in plain if name.startswith(wrapper)}
            found.append(Found(place, wrapper, own))
    return sorted(found, key=Found.rank, reverse=True)


def dictionaries(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """The tensors with a name in each dictionary of a checkpoint, also inside others, and of each pickled network."""
    if isinstance(content, Mapping):
        tensors = {name: t for name, t in content.items() if isinstance(name, str) and isinstance(t, Tensor)}
        tensors |= dict(_of_a_module(content))
        if tensors:
            yield place, tensors
        inner = content.items()
    else:
        inner = enumerate(content) if isinstance(content, list | tuple) else ()
    if len(place) < DEEPEST:
        for name, value in inner:
            yield from dictionaries(value, (*place, str(name)))


def _of_a_module(content: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """State dict of a network that was pickled whole, from its attributes; one that holds itself is not followed on."""
    for kind in ("_parameters", "_buffers"):
        part = content.get(kind)
        for name, tensor in part.items() if isinstance(part, Mapping) else ():
            if isinstance(tensor, Tensor):
                yield f"{prefix}{name}", tensor
    children = content.get("_modules")
    for name, child in children.items() if isinstance(children, Mapping) else ():
        if isinstance(child, Mapping) and depth < DEEPEST_MODULE:
            yield from _of_a_module(child, f"{prefix}{name}.", depth + 1)


def described(content: Any, shown: int = 12) -> str:
    """What a checkpoint holds at its outermost, in a sentence's words: names and kinds."""
    if not isinstance(content, Mapping):
        return _kind(content)
    words = [f"{name} ({_kind(value)})" for name, value in list(content.items())[:shown]]
    more = [f"and {len(content) - shown} more"] if len(content) > shown else []
    return ", ".join(words + more) or "nothing"


def _kind(value: Any) -> str:
    if isinstance(value, Unknown):
        return value.kind
    sized = f" of {len(value)}" if isinstance(value, Mapping | Sequence) and not isinstance(value, str) else ""
    return type(value).__name__ + sized


def unknown_kinds(content: Any) -> list[str]:
    """Classes in a checkpoint that were not loaded, each once."""
    kinds, waiting, done = set(), [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in done:  # objects may hold each other
            continue
        done.add(id(value))
        if isinstance(value, Unknown):
            kinds.add(value.kind)
        if isinstance(value, Mapping | list | tuple):
            waiting += value.values() if isinstance(value, Mapping) else value
    return sorted(kinds)
