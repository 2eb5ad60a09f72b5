"""The record of a run, beside its results: configuration as it ran, paths, seed, versions, commit, machine.

`record_run` is an entry of `run` in every bundle's configs; `sa-swin report` reads what it wrote.
"""

import datetime
import json
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from custom.support.bundle_command import typed
from custom.support.files import write_whole

PACKAGES = ("sa-swin", "torch", "monai", "pytorch-ignite", "numpy", "nibabel", "scipy", "scikit-learn")


def of_weights(settings: Mapping[str, Any], **further: Any) -> dict[str, Any]:
    """The settings of a run, and further facts, as its weights carry them: plain values, and no path.

    Weights are passed on: of a setting that is a path, only that it was given is told. Nothing is told of `resume`: a
    training that was stopped ends as one that was not.
    """
    told = {
        n: "(a path)" if isinstance(v, str) and re.search(r"[/\\]", v) else v
        for n, v in settings.items()
        if n != "resume"
    }
    return json.loads(json.dumps(told | further))


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


def resolved(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the values that its knobs came to in place of expressions such as `$@weights.get(...)`."""
    return {n: settings.get(n, v) if isinstance(v, str) and v.startswith("$") else v for n, v in config.items()}


def record_run(workflow: str, settings: Mapping[str, Any], paths: Mapping[str, str | Path | None]) -> None:
    """Write `<output_dir>/run_<workflow>.json`; in a run over several processes the first one does.

    `config` is the whole configuration of a run from the command line, with the values that its knobs came to, those of
    the weights included; of a run from Python its settings.

    Args:
        workflow: `train`, `evaluate` or `inference`.
        settings: knobs of the run, as it resolved them.
        paths: of the run, as it resolved them; `output_dir` is one.
    """
    if dist.is_initialized() and dist.get_rank() > 0:
        return
    command = typed()
    content = {
        "workflow": workflow,
        "bundle": command.bundle if command else None,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "seed": settings.get("seed"),
        "paths": dict(paths),
        "settings": dict(settings),
        "versions": versions(),
        "machine": machine(),
        "config": resolved(command.config(), settings) if command else dict(settings),
    }
    write_whole(Path(paths["output_dir"]) / f"run_{workflow}.json", json.dumps(content, indent=2, default=str) + "\n")
