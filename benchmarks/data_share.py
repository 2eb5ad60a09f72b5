"""Share of a training's time that is spent waiting for data, of a bundle as it is, on a prepared cohort.

Also how many volumes one process reads and augments in a second, of which a GPU's share of waiting follows.

    sa-swin phantom --output COHORT --subjects 16 --spacing 1
    sa-swin prepare --dataset_dir COHORT --output PREPARED
    python -m benchmarks.data_share --dataset_dir PREPARED --tasks pretrain,segment

Each training runs for some epochs, of which the first is not counted. Workers start anew with each epoch, which is.
With a cache rate of 0 every volume is read in every epoch, from the page cache where the memory holds the files.
"""

import contextlib
import datetime
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import fire
import torch
from ignite.handlers import BasicTimeProfiler
from monai.bundle import ConfigWorkflow
from monai.utils import ensure_tuple

from benchmarks.throughput import circumstances
from custom.support.files import write_whole
from custom.training.randomness import SeededSamples
from custom.transforms.contract import SPATIAL_SIZE

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
SIZES = {12: {"num_heads": [1, 2, 4, 8]}, 48: {"num_heads": [3, 6, 12, 24]}}
Row = dict[str, Any]


def measured(task: str, settings: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Seconds of every step, of the wait before it, and of one process for each volume; without the first epoch."""
    root = BUNDLES / f"sa_swin_{task}"
    with tempfile.TemporaryDirectory() as folder:
        paths = {"bundle_root": str(root), "output_dir": folder, "ckpt_dir": folder}
        workflow = ConfigWorkflow(
            str(root / "configs" / "train.yaml"), logging_file=False, workflow_type="train", **paths, **settings
        )
        workflow.initialize()
        trainer, profiler = workflow.parser.get_parsed_content("train::trainer"), BasicTimeProfiler()
        profiler.attach(trainer)
        workflow.run()
        loading = loading_times(workflow.parser.get_parsed_content("train::dataloader").dataset)
        workflow.finalize()
    first = trainer.state.epoch_length
    return profiler.processing_times[first:], profiler.dataflow_times[first:], loading


def loading_times(samples: SeededSamples) -> torch.Tensor:
    """Seconds in this process for each volume, from the file or the cache to what a step takes."""
    times = [time.perf_counter()]
    for index in range(len(samples)):
        samples[(0, index)]
        times.append(time.perf_counter())
    return torch.tensor(times, dtype=torch.float64).diff()


def row(task: str, settings: dict[str, Any]) -> Row:
    """Figures of one training."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        steps, waits, loading = measured(task, settings)
    return {
        "task": task,
        "feature_size": settings["feature_size"],
        "cache_rate": settings["cache_rate"],
        "num_workers": settings["num_workers"],
        "steps": len(steps),
        "seconds_a_step": steps.median().item(),
        "share": (waits.sum() / (waits.sum() + steps.sum())).item(),
        "volumes_a_second": 1 / loading.median().item(),
    }


def run(
    dataset_dir: str,
    tasks: Sequence[str] = ("pretrain", "classify", "segment"),
    feature_sizes: Sequence[int] = (12, 48),
    cache_rates: Sequence[float] = (0.0, 1.0),
    num_workers: Sequence[int] = (0,),
    spacing: float = 1.0,
    spatial_size: Sequence[int] = SPATIAL_SIZE,
    roi: int = 64,
    batch_size: int = 1,
    epochs: int = 3,
    limit: int = 8,
    device: str = "cpu",
    output: str = "benchmarks/results",
) -> None:
    """Measure, and write data_share_<device>_<date>.json and .md.

    Args:
        dataset_dir: prepared cohort, of `spacing` and `spatial_size`.
        tasks: of pretrain, classify, segment.
        feature_sizes: of the encoder, 12 or 48.
        cache_rates: share of the cohort that is held in memory.
        num_workers: of the data loader.
        spacing: mm.
        spatial_size: voxels, X Y Z.
        roi: side of the ROI in voxels; a classifier takes the whole volume.
        batch_size: volumes.
        epochs: the first one is not counted.
        limit: volumes to train on.
        device: cpu or cuda.
        output: folder of the results.
    """
    rows, about = [], circumstances(device) | {"spatial_size": list(spatial_size)}
    grid = product(*map(ensure_tuple, (tasks, feature_sizes, cache_rates, num_workers)))
    for task, size, rate, workers in grid:
        settings = {"dataset_dir": dataset_dir, "align": False, "spacing": spacing, "spatial_size": list(spatial_size)}
        settings |= {"cache_rate": rate, "num_workers": workers, "batch_size": batch_size}
        settings |= {"feature_size": size, **SIZES[size]}
        settings |= {"max_epochs": epochs, "warmup_epochs": 0, "val_interval": epochs + 1, "limit": limit}
        settings |= {"roi_size": [roi] * 3} if task != "classify" else {}
        rows.append(row(task, settings | {"device": f"$torch.device({device!r})"}))
        content = {"circumstances": about, "rows": rows}
        path = Path(output) / f"data_share_{device}_{datetime.date.today()}.json"
        write_whole(path, json.dumps(content, indent=1) + "\n")
        write_whole(path.with_suffix(".md"), "\n".join(table(content)) + "\n")
    sys.stdout.write("\n".join(table(content)) + "\n")


def table(content: dict[str, Any]) -> Iterator[str]:
    """The figures in Markdown."""
    about = content["circumstances"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    yield "# Share of a training's time spent waiting for data\n"
    yield f"{about['date']}, {about['hardware']}; {versions}; commit {about['commit']}. Prepared volumes "
    yield f"of {' x '.join(map(str, about['spatial_size']))} voxels.\n"
    yield "| task | feature size | cached | workers | steps | s a step | share of time waiting | volumes/s a process |"
    yield "|---|---|---|---|---|---|---|---|"
    for found in content["rows"]:
        names = "task", "feature_size", "cache_rate", "num_workers", "steps"
        figures = f"{found['seconds_a_step']:.2f} | {found['share']:.1%} | {found['volumes_a_second']:.1f}"
        yield f"| {' | '.join(str(found[name]) for name in names)} | {figures} |"


if __name__ == "__main__":
    fire.Fire(run)
