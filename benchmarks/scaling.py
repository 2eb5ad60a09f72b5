"""How time and memory of a pretraining step grow with the ROI, the batch and the number of processes.

    python -m benchmarks.scaling run --rois 64,96 --batches 1,2,4 --processes 1,2

Processes are started by torchrun and share the cores of the machine (gloo) or take a GPU each (nccl).
"""

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import fire
import torch
import torch.distributed as dist
from monai.utils import ensure_tuple
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from benchmarks.tasks import Cell, build, memory, timed
from benchmarks.throughput import circumstances, contest, seconds
from custom.support.files import write_whole


def run(
    device: str = "cpu",
    feature_size: int = 12,
    rois: Sequence[int] = (64, 96),
    batches: Sequence[int] = (1, 2, 4),
    processes: Sequence[int] = (1, 2),
    dtype: str = "fp32",
    repeats: int = 3,
    output: str = "benchmarks/results",
) -> None:
    """Measure, and write scaling_<device>_<date>.json and .md.

    Args:
        device: cpu or cuda.
        feature_size: of the encoder.
        rois: sides in voxels, at the smallest batch.
        batches: symmetric pairs, two views each, at the smallest ROI.
        processes: that share the largest batch, at the smallest ROI.
        dtype: fp32 or bf16.
        repeats: timed steps of each.
        output: folder of the results.
    """
    rois, batches, processes = (sorted(ensure_tuple(x)) for x in (rois, batches, processes))
    cells = [Cell("pretrain", "ours", dtype, feature_size, batches[0], roi, (roi,) * 3, device) for roi in rois]
    cells += [Cell("pretrain", "ours", dtype, feature_size, n, rois[0], (rois[0],) * 3, device) for n in batches[1:]]
    rows: list[dict[str, Any]] = []
    for cell in tqdm(cells, "sizes", disable=None):
        rows += [row | {"processes": 1} for row in contest([cell], repeats)]
    for count in tqdm(processes, "processes", disable=None):
        share = Cell("pretrain", "ours", dtype, feature_size, batches[-1] // count, rois[0], (rois[0],) * 3, device)
        rows.append(distributed(share, count, repeats))
    content = {"circumstances": circumstances(device), "rows": rows}
    path = Path(output) / f"scaling_{device}_{datetime.date.today()}.json"
    write_whole(path, json.dumps(content, indent=1) + "\n")
    write_whole(path.with_suffix(".md"), table(content))
    sys.stdout.write(table(content))


def distributed(share: Cell, count: int, repeats: int) -> dict[str, Any]:
    """A row of `count` processes, each with its share of the batch."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command += ["-m", "benchmarks.scaling", "worker", json.dumps(share.__dict__), str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    row = share.__dict__ | {"processes": count}
    if done.returncode:
        return row | {"error": (done.stderr.strip().splitlines() or ["failed"])[-1]}
    return row | json.loads(done.stdout.splitlines()[-1])


def worker(cell: dict[str, Any], repeats: int) -> None:
    """One process of `distributed`, under torchrun: prints a row's figures on rank 0."""
    share = Cell(**(cell | {"volume": tuple(cell["volume"])}))
    gpu = share.device == "cuda"
    dist.init_process_group("nccl" if gpu else "gloo")
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    baseline = memory()
    step = build(share, lambda network: DistributedDataParallel(network, find_unused_parameters=False))
    times = [timed(step)[:2] for _ in range(repeats + 1)][1:]
    if dist.get_rank() == 0:
        clock, cpu = zip(*times, strict=True)
        figures = {"seconds": clock, "cpu_seconds": cpu, "peak_bytes": memory() - baseline}
        sys.stdout.write(json.dumps(figures) + "\n")
    dist.destroy_process_group()


def table(content: dict[str, Any]) -> str:
    """The figures in Markdown."""
    about = content["circumstances"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        "# Scaling of a pretraining step\n",
        f"{about['date']}, {about['hardware']}; {versions}; commit {about['commit']}. Memory is one process' "
        "peak beyond its imports; samples are symmetric pairs of all processes together.\n",
        "| processes | feature size | dtype | ROI | pairs a process | samples/s | s a step | peak GB a process |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        head = f"| {row['processes']} | {row['feature_size']} | {row['dtype']} | {row['roi']}^3 | {row['batch']} |"
        if "error" in row:
            lines.append(f"{head} {row['error']} | | |")
            continue
        rate = row["batch"] * row["processes"] / seconds(row)
        spread = f"{median(row['seconds']):.3f} ({min(row['seconds']):.3f}-{max(row['seconds']):.3f})"
        lines.append(f"{head} {rate:.3g} | {spread} | {row['peak_bytes'] / 1e9:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    fire.Fire({"run": run, "worker": worker})
