"""A device other than the CPU, on a machine that has none: what lies on it does not mix with what lies on the CPU.

Its tensors are torch's `meta` tensors, whose values are kept beside them and computed on the CPU. As on a GPU, an
operation refuses tensors of both devices, save single numbers of the CPU.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

DEVICE = torch.device("meta")
MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
WAITING = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
)
"""What gives the host a number, or tensors of a size that follows from numbers."""
MATH = 0  # of torch's kinds of attention, the one that is made of plain operations


class MixedDevicesError(RuntimeError):
    """An operation on tensors of both devices."""


class SecondDevice(TorchDispatchMode):
    """While it is entered, `DEVICE` holds values.

    `moved` names the operations that bring values from or to it; `waited`, those for which the host waits as well.
    """

    held: ClassVar[dict[int, tuple[StorageWeakRef, torch.UntypedStorage]]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.moved: list[str] = []
        self.waited: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        target = kwargs.get("device")
        inputs = _tensors((args, kwargs))
        there = [tensor for tensor in inputs if tensor.is_meta]
        if not there and target != DEVICE:
            return func(*args, **kwargs)
        if func is torch.ops.aten._fused_sdp_choice.default:
            return MATH
        mixed = [tensor for tensor in inputs if not tensor.is_meta and tensor.ndim]
        if there and mixed and func not in MOVES:
            raise MixedDevicesError(f"{func} of {[(t.device.type, tuple(t.shape)) for t in inputs]}")
        if func in WAITING or _by_mask(func, args):
            self.waited.append(str(func))
        elif mixed or (there and target == torch.device("cpu")):
            self.moved.append(str(func))
            if not _non_blocking(func, args, kwargs):
                self.waited.append(str(func))
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        values = {id(tensor): self.value(tensor) for tensor in there}
        onto_values = tree_map_only(Tensor, lambda tensor: values.get(id(tensor), tensor), (args, kwargs))
        result = func(*onto_values[0], **onto_values[1])
        if (target is not None and target != DEVICE) or (func is MOVES[1] and not args[0].is_meta):
            return result
        origin = {id(values[id(tensor)]): tensor for tensor in there}
        storages = {values[id(tensor)].untyped_storage()._cdata: tensor.untyped_storage() for tensor in there}
        return tree_map_only(Tensor, lambda value: self.placed(value, origin, storages), result)

    def value(self, tensor: Tensor) -> Tensor:
        """The values of a tensor there, on the CPU, in the same memory each time."""
        storage = self.held[tensor.untyped_storage()._cdata][1]
        return _tensor_in(storage, tensor, "cpu")

    def placed(self, value: Tensor, origin: dict[int, Tensor], storages: dict[int, torch.UntypedStorage]) -> Tensor:
        """The tensor there of a result: an argument itself, a view of one, or a new one."""
        if (same := origin.get(id(value))) is not None:
            return same if same.shape == value.shape else same.as_strided_(value.shape, value.stride())
        storage = storages.get(value.untyped_storage()._cdata)
        if storage is None:
            self.forget()
            storage = torch.empty(value.untyped_storage().nbytes(), dtype=torch.uint8, device=DEVICE).untyped_storage()
            self.held[storage._cdata] = StorageWeakRef(storage), value.untyped_storage()
        return _tensor_in(storage, value, DEVICE)

    def forget(self) -> None:
        """Free the values that no tensor there has any more."""
        if len(self.held) % 64 == 0:
            for key in [key for key, (storage, _) in self.held.items() if storage.expired()]:
                del self.held[key]


class _FromData(TorchFunctionMode):
    """Torch makes `meta` tensors from numbers without looking at them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor):
            numbers = tree_map_only(Tensor, lambda tensor: tensor.tolist(), args[0])
            return func(numbers, **{**kwargs, "device": None}).to(kwargs.get("device") or "cpu")
        return func(*args, **kwargs)


class _Generator(torch.Generator):
    """A source of random numbers there."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        self = super().__new__(cls)
        self._place = torch.device(device)
        return self

    @property
    def device(self) -> torch.device:
        return self._place


@contextmanager
def second_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SecondDevice]:
    """Let there be `DEVICE`, with a generator, checkpoints as a GPU's, and autocast, which does nothing there."""
    mode, reduce, autocast = SecondDevice(), Tensor.__reduce_ex__, torch.autocast
    monkeypatch.setattr(torch, "Generator", _Generator)
    monkeypatch.setattr(Tensor, "__reduce_ex__", lambda t, version: reduce(mode.value(t) if t.is_meta else t, version))
    monkeypatch.setattr(torch, "autocast", lambda device_type, *args, **options: autocast("cpu", enabled=False))
    with _FromData(), mode, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")  # here it does copy
        yield mode


def _by_mask(func: Any, args: Any) -> bool:
    """Whether it takes what a mask names."""
    return func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])


def _non_blocking(func: Any, args: Any, kwargs: Any) -> bool:
    return bool(args[2] if func is MOVES[1] and len(args) > 2 else kwargs.get("non_blocking", False))


def _tensors(content: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, content)
    return found


def _tensor_in(storage: torch.UntypedStorage, like: Tensor, device: Any) -> Tensor:
    empty = torch.empty(0, dtype=like.dtype, device=device)
    return empty.set_(storage, like.storage_offset(), like.shape, like.stride())
