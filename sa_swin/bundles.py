"""`sa-swin train | evaluate | predict BUNDLE ...`: a thin door to `python -m monai.bundle run`, which it prints.

BUNDLE is pretrain, classify or segment, or the folder of a package. Every other option goes to the bundle as it is;
its knobs stand at the top of `configs/train.yaml` and `configs/inference.yaml`. `--processes N` trains or
evaluates on N GPUs, or in N processes of a CPU, by torchrun. `--plan FILE` lays what `sa-swin plan` wrote over
`configs/train.yaml`. `--weights A B C` predicts or evaluates with several weights of one training together: files,
folders of a training, or folders of packages.
"""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from custom.support.errors import UserError
from custom.support.startup import PATHS, referring
from sa_swin.commands import say

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {"train": ("train",), "evaluate": ("train", "evaluate"), "predict": ("inference",)}


def bundle_folder(name: str) -> Path:
    """Folder of a bundle, by its name, its short name or its path.

    Raises:
        ValueError: there is none.
    """
    for folder in (Path(name), ROOT / "bundles" / name, ROOT / "bundles" / f"sa_swin_{name}"):
        if (folder / "configs").is_dir():
            return folder.resolve()
    known = sorted(path.name.removeprefix("sa_swin_") for path in (ROOT / "bundles").glob("sa_swin_*"))
    raise ValueError(f"no bundle {name!r}: expected {', '.join(known)}, or the folder of a package")


def bundle_command(
    workflow: str, folder: Path, options: Sequence[str], processes: int = 1, plan: str | None = None
) -> list[str]:
    """The command that runs a workflow of a bundle, in MONAI's words."""
    first, *layers = (str(file) for file in config_files(workflow, folder, processes))
    files = [first, *([plan] if plan else []), *layers]
    python = [sys.executable, "-m"]
    start = [*python, "torch.distributed.run", f"--nproc_per_node={processes}", "-m"] if processes > 1 else python
    config = files[0] if len(files) == 1 else repr(files)
    return [*start, "monai.bundle", "run", "--config_file", config, "--bundle_root", str(folder), *options]


def config_files(workflow: str, folder: Path, processes: int = 1) -> list[Path]:
    """The configs of a workflow, in the order that they are merged in."""
    layers = [*CONFIGS[workflow], *([f"multi_gpu_{workflow}"] if processes > 1 else [])]
    return [next(folder.glob(f"configs/{layer}.yaml"), folder / "configs" / f"{layer}.json") for layer in layers]


def knobs(workflow: str, folder: Path) -> str:
    """What `--help` prints of a workflow: the knobs and paths on top of its configs, with their comments."""
    parts = [f"sa-swin {workflow} {folder.name} [--option value ...]"]
    for file in config_files(workflow, folder):
        own = re.split(r"\n(?:#.*\n)*(?:\S+: *\{|\S+:\n)", file.read_text(), maxsplit=1)[0]
        parts.append(f"{file}:\n\n{own.strip()}")
    return "\n\n".join(parts)


def take(name: str, options: Sequence[str]) -> tuple[list[str], str | None]:
    """The options without `--name VALUE` (or `--name=VALUE`), and the value; None where it is not there."""
    rest, value = [], None
    words = iter(options)
    for word in words:
        if word.split("=")[0] == f"--{name}":
            value = word.partition("=")[2] or next(words, "")
        else:
            rest.append(word)
    return rest, value


def take_processes(options: Sequence[str]) -> tuple[list[str], int]:
    """The options without `--processes N`, and N.

    Raises:
        ValueError: it is no number of 1 or more.
    """
    rest, text = take("processes", options)
    if text is not None and (not text.isdigit() or int(text) < 1):
        raise ValueError(f"--processes must be a number of 1 or more, got {text!r}")
    return rest, int(text or 1)


def take_plan(options: Sequence[str]) -> tuple[list[str], str | None]:
    """The options without `--plan FILE`, and the file.

    Raises:
        ValueError: there is no such file.
    """
    rest, plan = take("plan", options)
    if plan is not None and not Path(plan).is_file():
        raise ValueError(f"no plan at {plan!r}; sa-swin plan writes one")
    return rest, plan


def checkpoint_at(path: str | Path) -> Path:
    """The weights in a package's folder, in a folder of a training, or the file itself.

    Raises:
        UserError: there are none.
    """
    folder = Path(path)
    for place in (folder / "models" / "model.pt", folder / "model.pt", folder):
        if place.is_file() and place.suffix != ".zip":
            return place
    raise UserError(f"no weights at {path}: expected a package of `sa-swin release`, or a folder with model.pt")


def checkpoint_option(checkpoints: Sequence[Path]) -> str:
    """Weights as the value of `--checkpoint`: one as its path, several as a list."""
    return str(checkpoints[0]) if len(checkpoints) == 1 else repr([str(path) for path in checkpoints])


def take_weights(options: Sequence[str]) -> list[str]:
    """The options with `--checkpoint` in the place of `--weights A B C`.

    Raises:
        UserError: no weights there, or none named.
    """
    rest, paths, taking, asked = [], [], False, False
    for word in options:
        name, equals, value = word.partition("=")
        if name == "--weights":
            taking, asked, paths = True, True, [*paths, *([value] if equals else [])]
        elif word.startswith("--") or not taking:
            taking, rest = False, [*rest, word]
        else:
            paths.append(word)
    if not asked:
        return rest
    if not paths or "" in paths:  # an empty variable of the shell
        raise UserError("--weights has an empty value: give files, or folders of trainings or packages")
    return [*rest, "--checkpoint", checkpoint_option([checkpoint_at(path) for path in paths])]


def pythonic(options: Sequence[str]) -> list[str]:
    """The options with `True` and `False`, as MONAI's runner reads them, for `true` and `false`; paths stay."""
    found, owner = [], ""
    for word in options:
        name, equals, value = word.partition("=") if word.startswith("--") else (owner, "", word)
        if value in ("true", "false") and name.lstrip("-").replace("-", "_") not in PATHS:
            word = f"{name}={value.title()}" if equals else value.title()
        found.append(word)
        owner = name
    return found


def main(arguments: Sequence[str]) -> None:
    """Print and run the command; this process becomes it, so that its exit code is its own."""
    workflow, *rest = arguments
    asked = {"--help", "-h"} & set(rest)
    if not rest or rest[0] in asked:
        print(__doc__.strip())
        sys.exit(0 if rest else 2)
    try:
        folder = bundle_folder(rest[0])
        if asked:
            say(knobs(workflow, folder))
            return
        options, processes = take_processes(rest[1:])
        options, plan = take_plan(options)
        if workflow == "predict" and (processes > 1 or plan):
            raise ValueError("--processes and --plan are for training and evaluation; predict runs in one process")
        if workflow == "train" and take("weights", options)[1] is not None:
            raise ValueError("--weights is for evaluation and prediction; to start from weights give --pretrained")
        options = take_weights(options)
    except ValueError as error:
        sys.stderr.write(f"sa-swin {workflow}: {error}\n")
        sys.exit(2)
    if sentence := referring(options):
        sys.exit(f"error: {sentence}")
    command = bundle_command(workflow, folder, pythonic(options), processes, plan)
    sys.stderr.write(f"+ {shlex.join(command)}\n")
    sys.stderr.flush()
    os.execve(command[0], command, dict(os.environ) | quick_start())


def quick_start() -> dict[str, str]:
    """What of the environment lets Python read this checkout's `sitecustomize.py`, with which MONAI starts sooner."""
    if not (ROOT / "sitecustomize.py").is_file():
        return {}
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
