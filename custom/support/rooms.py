"""Rooms of `custom`: a package that imports a module of its own when one of its names is first asked for.

MONAI and torch take seconds to import; a datalist, or `--help`, needs neither.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def opened(room: str, names: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], list[str]]:
    """`__getattr__` and `__all__` of a room, from its modules' public names."""
    home = {name: module for module, own in names.items() for name in own}

    def getattribute(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(import_module(f"{room}.{home[name]}"), name)

    return getattribute, sorted(home)
