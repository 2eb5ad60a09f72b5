"""The record of a run, beside its results: configuration as it ran, paths, seed, versions, commit, machine.

`record_run` is the second entry of `run` in every bundle's configs; `sa-swin report` reads what it wrote.
"""

import datetime
import inspect
import json
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from monai.bundle import ConfigParser

from custom.support.files import write_whole

PACKAGES = ("sa-swin", "torch", "monai", "pytorch-ignite", "numpy", "nibabel", "scipy", "scikit-learn")
PATHS = ("dataset_dir", "datalist", "output_dir", "ckpt_dir", "checkpoint", "section")
"""Ids whose values are recorded as the run resolved them, beside the configuration as it was written."""


def calling_parser() -> ConfigParser | None:
    """The parser of the config that the caller is made by, or None outside of a config.

    MONAI hands a component its arguments alone; the parser is the nearest one on the call stack.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(parser := frame.f_locals.get("self"), ConfigParser):
            return parser
        frame = frame.f_back
    return None


def merged_config(parser: ConfigParser | None) -> dict[str, Any]:
    """A parser's configuration as it stands, files and command line merged, without the bundle's metadata."""
    return {} if parser is None else {name: value for name, value in parser.get().items() if name != "_meta_"}


def settings(**further: Any) -> dict[str, Any]:
    """The knobs of the config that the caller is made by, those that stand above `bundle_root`, and further facts.

    They lie beside weights that are passed on: of a knob that is a path, only that it was given is told.
    """
    parser = calling_parser()
    names = list(parser.get())
    knobs = {name: parser.get_parsed_content(name) for name in names[: names.index("bundle_root")]}
    return {n: "(a path)" if isinstance(v, str) and re.search(r"[/\\]", v) else v for n, v in knobs.items()} | further


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit(folder: str | Path = Path(__file__).parent) -> str | None:
    """The git commit of the code, with `+changes` where tracked files differ from it; None outside of a repository."""
    command = ["git", "--no-optional-locks"]  # a run that is killed meanwhile must not leave the repository locked
    try:
        head, changes = (
            subprocess.run(command + words, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changes else "")


def machine() -> dict[str, Any]:
    """What the run computed on."""
    cuda = torch.cuda.is_available()
    return {
        "system": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
    }


def record_run(workflow: str, output_dir: str | Path) -> None:
    """Write `<output_dir>/run_<workflow>.json`; in a run over several processes the first one does.

    Args:
        workflow: `train`, `evaluate` or `inference`.
        output_dir: of the run.
    """
    if dist.is_initialized() and dist.get_rank() > 0:
        return
    parser = calling_parser()
    config = merged_config(parser)
    resolved = {name: parser.get_parsed_content(name) for name in PATHS if name in config}
    content = {
        "workflow": workflow,
        "bundle": Path(str(config.get("bundle_root", "."))).resolve().name,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "seed": config.get("seed"),
        "paths": resolved,
        "versions": versions(),
        "machine": machine(),
        "config": config,
    }
    write_whole(Path(output_dir) / f"run_{workflow}.json", json.dumps(content, indent=2, default=str) + "\n")
