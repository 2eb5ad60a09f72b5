"""Trainings of the bundles on a few tiny heads, each in a process that can be killed.

The processes are forked from one that has MONAI loaded and has computed nothing: starting one takes no time.
"""

import multiprocessing
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("pretrain", "classify", "segment")
BATCH = {"pretrain": 2, "classify": 2, "segment": 1}  # two steps per epoch
SIZE = [64, 32, 32]
SETTINGS = {
    "feature_size": 12,
    "window_size": 4,
    "depths": [1, 1, 1, 1],
    "spacing": 6.0,
    "spatial_size": SIZE,
    "align": False,
    "num_workers": 0,
    "warmup_epochs": 1,
    "max_epochs": 3,
    "val_interval": 1,
    "patience": 50,
    "device": "$torch.device('cpu')",
}

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["bundle_runs", "custom.networks", "monai.bundle", "monai.engines", "monai.handlers", "torch._inductor"]
)


def overrides(task, root, output, **changes):
    """Settings of a small training of a bundle; `changes` come last."""
    values = SETTINGS | {
        "dataset_dir": str(root),
        "bundle_root": str(ROOT / "bundles" / f"sa_swin_{task}"),
        "output_dir": str(output),
        "ckpt_dir": str(output / "models"),
        "batch_size": BATCH[task],
    }
    return values | ({} if task == "classify" else {"roi_size": SIZE, "num_samples": 1}) | changes


def config_files(task, several=False):
    folder = ROOT / "bundles" / f"sa_swin_{task}" / "configs"
    return [str(folder / name) for name in ("train.yaml", "multi_gpu_train.yaml")[: 2 if several else 1]]


def workflow(task, root, output, several=False, **changes):
    """A training as `python -m monai.bundle run` makes it, before its `initialize`."""
    from monai.bundle import ConfigWorkflow

    files, settings = config_files(task, several), overrides(task, root, output, **changes)
    if several:
        settings.pop("device")
    return ConfigWorkflow(files, logging_file=False, workflow_type="train", **settings)


def train(task, root, output, rank=None, world=1, port=0, before=None, **changes):
    """Run a training to its end, in the process that is to be killed; its output goes to `<output>/log<rank>.txt`.

    `before` puts in the fault: it is called with the workflow when all is made and the trainer is about to run.
    """
    output.mkdir(parents=True, exist_ok=True)
    log = os.open(output / f"log{rank or ''}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of data-loader workers, as on the command line
    if rank is not None:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
    bundle = workflow(task, root, output, several=rank is not None, **changes)
    bundle.initialize()
    if before is not None:
        put_in(before, bundle)
    try:
        bundle.run()
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


def put_in(fault, bundle):
    from monai.engines import SupervisedTrainer

    run = SupervisedTrainer.run

    def faulty(trainer):
        fault(bundle)
        run(trainer)

    SupervisedTrainer.run = faulty


def started(task, root, output, **options):
    """A training in a new process."""
    process = processes.Process(target=train, args=(task, root, output), kwargs=options, daemon=False)
    process.start()
    return process


def finished(task, root, output, **options):
    """Run a training in a new process to its end, and return its exit code."""
    process = started(task, root, output, **options)
    process.join()
    return process.exitcode


def log_of(output, rank=None):
    return (output / f"log{rank or ''}.txt").read_text(errors="replace")


def end_of(output):
    """Everything that a training leaves: its last state and its best weights, without their salted hashes."""
    last = torch.load(output / "models" / "last.pt", weights_only=True)
    del last["seen"]
    return {"last": last, "best": dict(torch.load(output / "models" / "model.pt", weights_only=True))}


def differences(one, other, name=""):
    """Where two ends differ, bit for bit; empty where they are the same."""
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [name]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{name}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [text for key in one for text in differences(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=True)
        return [text for i, (a, b) in enumerate(pairs) for text in differences(a, b, f"{name}.{i}")]
    return [] if one == other or (one != one and other != other) else [f"{name}: {one} and {other}"]
