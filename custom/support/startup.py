"""Before a bundle run starts: what MONAI imports for parts that no bundle uses waits until it is asked for.

As it is imported, MONAI imports every optional package it finds: for one metric, one transform or one handler seconds
of scikit-learn, SciPy's signal processing, pandas, matplotlib and MLflow.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import cache, wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from itertools import pairwise
from types import ModuleType
from typing import Any

PATHS = ("bundle_root", "dataset_dir", "datalist", "output_dir", "ckpt_dir", "checkpoint", "conformal", "pretrained")
"""Settings that are paths."""
LATER = ("matplotlib", "mlflow", "pandas", "scipy.signal", "sklearn")
"""Packages that MONAI imports later."""
OPTIONAL = "monai.utils.module"
"""MONAI's module whose `optional_import` its others call as they are imported."""
MODULES = ("matplotlib.pyplot", "torch.distributed.optim")
"""Modules that MONAI and ignite import by a plain `import`, for a plot and a kind of optimizer."""


def start_soon(words: Sequence[str] | None = None) -> None:
    """In a process that runs a bundle, let MONAI import later what it may not need; in any other do nothing.

    A path that MONAI's runner would look up in its configs ends the process, before that ends in a traceback.

    Args:
        words: of the process's command line; by default of this one. With `--tracking` MLflow is needed at once.
    """
    words = sys.orig_argv if words is None else words
    if "monai.bundle" in words and "monai" not in sys.modules:
        if sentence := referring(words):
            sys.stderr.write(f"error: {sentence}\n")
            sys.stderr.flush()
            os._exit(1)  # Python takes an exception at this point for a broken installation
        tracked = any(word.startswith("--tracking") for word in words)
        sys.meta_path.insert(0, _Finder([name for name in LATER if not (tracked and name == "mlflow")]))


def referring(words: Sequence[str]) -> str | None:
    """What is wrong with a path that begins with %, which MONAI's runner replaces by what it names in the configs."""
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.lstrip("-").partition("=")
        text = value if equals else following
        if word.startswith("--") and name in PATHS and text.startswith("%") and text[1:] not in PATHS:
            return f"--{name} {text}: MONAI's runner reads that as a reference to a setting; write ./{text}"
    return None


class Deferred:
    """A module, or something in it, that is imported when it is used.

    Args:
        load: gives it.
    """

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = cache(load)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._load()(*args, **kwargs)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self._load())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._load(),)


def deferring(optional_import: Callable[..., tuple[Any, bool]], later: Sequence[str]) -> Callable[..., Any]:
    """MONAI's `optional_import` that does its work for some packages, where they are there, when they are used."""

    @wraps(optional_import)
    def deferred(module: str, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
        wanted = any(f"{module}.".startswith(f"{name}.") for name in later)
        if not wanted or find_spec(module.partition(".")[0]) is None:
            return optional_import(module, *args, **kwargs)
        return Deferred(lambda: optional_import(module, *args, **kwargs)[0]), True

    return deferred


class _Finder(MetaPathFinder):
    def __init__(self, later: Sequence[str]) -> None:
        self.later = later

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in (OPTIONAL, *MODULES):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.later) if fullname == OPTIONAL else _LaterLoader(spec.loader)
        return spec


class _Loader(Loader):
    """The loader of MONAI's module that puts `deferring` around its `optional_import`."""

    def __init__(self, loader: Loader, later: Sequence[str]) -> None:
        self.loader = loader
        self.later = later

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        module.optional_import = deferring(module.optional_import, self.later)


class _LaterLoader(Loader):
    """The loader of a module whose contents are `Deferred`, until the first of them is used."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _LaterModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = module.__spec__.loader = self.loader


class _LaterModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of no interest to a reader, but to whoever looks through all modules
            raise AttributeError(name)
        return Deferred(lambda: self._loaded(name))

    def _loaded(self, name: str) -> Any:
        if type(self) is _LaterModule:
            self.__class__ = ModuleType
            self.__loader__.exec_module(self)
        return getattr(self, name)
