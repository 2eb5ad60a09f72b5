"""`sa-swin train | evaluate | predict BUNDLE ...`: a thin door to `python -m monai.bundle run`, which it prints.

BUNDLE is pretrain, classify or segment, or the folder of a package. Every other option goes to the bundle as it is;
its knobs stand at the top of `configs/train.yaml` and `configs/inference.yaml`. `--processes N` trains or
evaluates on N GPUs, or in N processes of a CPU, by torchrun.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

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


def bundle_command(workflow: str, folder: Path, options: Sequence[str], processes: int = 1) -> list[str]:
    """The command that runs a workflow of a bundle, in MONAI's words."""
    layers = [*CONFIGS[workflow], *([f"multi_gpu_{workflow}"] if processes > 1 else [])]
    files = [str(next(folder.glob(f"configs/{layer}.yaml"), folder / "configs" / f"{layer}.json")) for layer in layers]
    python = [sys.executable, "-m"]
    start = [*python, "torch.distributed.run", f"--nproc_per_node={processes}", "-m"] if processes > 1 else python
    config = files[0] if len(files) == 1 else repr(files)
    return [*start, "monai.bundle", "run", "--config_file", config, "--bundle_root", str(folder), *options]


def take_processes(options: list[str]) -> tuple[list[str], int]:
    """The options without `--processes N` (or `--processes=N`), and N."""
    rest, count = [], 1
    words = iter(options)
    for word in words:
        if word.split("=")[0] == "--processes":
            text = word.partition("=")[2] or next(words, "")
            if not text.isdigit() or int(text) < 1:
                raise ValueError(f"--processes must be a number of 1 or more, got {text!r}")
            count = int(text)
        else:
            rest.append(word)
    return rest, count


def main(arguments: Sequence[str]) -> None:
    """Print and run the command; this process becomes it, so that its exit code is its own."""
    workflow, *rest = arguments
    if not rest or {"--help", "-h"} & set(rest):
        print(__doc__.strip())
        sys.exit(0 if rest else 2)
    try:
        folder = bundle_folder(rest[0])
        options, processes = take_processes(rest[1:])
        if processes > 1 and workflow == "predict":
            raise ValueError("--processes is for training and evaluation; predict runs in one process")
    except ValueError as error:
        sys.stderr.write(f"sa-swin {workflow}: {error}\n")
        sys.exit(2)
    command = bundle_command(workflow, folder, options, processes)
    sys.stderr.write(f"+ {shlex.join(command)}\n")
    sys.stderr.flush()
    os.execv(command[0], command)
