"""Ours against the same tasks of stock MONAI 1.6.1 parts: time, memory, share of the hardware's peak, in one run.

    python -m benchmarks.throughput                                          # two CPU cores, about half an hour
    python -m benchmarks.throughput --device cuda --budget_minutes 6         # one GPU; goes on where it was stopped

On a CPU every contestant runs in a process of its own, and they take turns, step by step, so that other work on the
machine slows all of them alike. On a GPU they run one after another in one process. Each cell is written when it is
done.
"""

import datetime
import importlib.metadata
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import fire
import torch
from monai.utils import ensure_tuple
from tqdm import tqdm

from benchmarks.on_gpu import bandwidth, bound, largest_batch, measure
from benchmarks.tasks import DTYPES, Cell, measured_peak, samples, serve
from custom.support.files import write_whole
from custom.support.run_record import commit

TASKS = ("pretrain", "classify", "segment", "infer_mirrored", "infer")
CONTESTANTS = ("ours", "stock", "stock best")
FURTHER = (("ours launched",), ("ours recomputed", "stock best recomputed"), ("ours compiled", "stock best compiled"))
"""On a GPU, of further rounds over all tasks, in the time that is left."""
Row = dict[str, Any]


class Contestant:
    """A process that does the steps of one cell on request."""

    def __init__(self, cell: Cell) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.cell = cell
        self.process = context.Process(target=serve, args=(cell, other), daemon=True)
        self.process.start()
        other.close()

    def ask(self, request: str) -> Any:
        """The answer; raises RuntimeError with the process' own words, or where it was killed."""
        self.connection.send(request)
        try:
            answer = self.connection.recv()
        except EOFError:
            raise RuntimeError("the process was killed, most likely for its memory") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def stop(self) -> None:
        if self.process.is_alive():
            self.connection.send("stop")
        self.process.join(30)


def contest(cells: Sequence[Cell], repeats: int) -> list[Row]:
    """Time some cells in turns; one that fails is left out of the rest and its error is its row."""
    contestants = [Contestant(cell) for cell in cells]
    rows: list[Row] = [asdict(cell) | {"seconds": [], "cpu_seconds": []} for cell in cells]
    for request in ("warm", *("step",) * repeats, "memory"):
        for contestant, row in zip(contestants, rows, strict=True):
            if "error" in row:
                continue
            try:
                answer = contestant.ask(request)
            except RuntimeError as error:
                row["error"] = str(error)
                continue
            if request == "warm":
                row["flops"], (_, _, row["result"]) = answer
            elif request == "memory":
                row["peak_bytes"] = answer
            else:
                row["seconds"].append(answer[0])
                row["cpu_seconds"].append(answer[1])
    for contestant in contestants:
        contestant.stop()
    return rows


def plan(
    device: str, tasks: Sequence[str], feature_sizes: Sequence[int], roi: int, batch: int, volume: Sequence[int]
) -> Iterator[list[Cell]]:
    """Groups of cells that are compared with each other, the most telling first."""
    dtypes = ("bf16",) if device == "cuda" else tuple(DTYPES)
    rounds = (CONTESTANTS, *FURTHER) if device == "cuda" else (CONTESTANTS,)
    for names, task, feature_size, dtype in product(rounds, tasks, feature_sizes, dtypes):
        chosen = [name for name in names if is_told_apart(task, name)]
        yield [Cell(task, name, dtype, feature_size, batch, roi, tuple(volume), device) for name in chosen]


def is_told_apart(task: str, implementation: str) -> bool:
    """Whether an implementation differs from the plain one in a task."""
    if task == "infer_mirrored" and "compiled" in implementation:  # it calls more than the network's forward pass
        return False
    return not (task.startswith("infer") and ("recomputed" in implementation or "launched" in implementation))


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What names a row."""
    names = ("task", "implementation", "dtype", "feature_size", "batch", "roi", "device")
    return *(row[name] for name in names), *row["volume"]


def circumstances(device: str) -> dict[str, Any]:
    """When, on what and with what the figures are made."""
    cpu = [
        x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")
    ]
    hardware = f"{cpu[0] if cpu else platform.processor()}, {torch.get_num_threads()} threads"
    peaks = {name: measured_peak(device, dtype) for name, dtype in DTYPES.items()}
    return {
        "date": str(datetime.date.today()),
        "hardware": torch.cuda.get_device_name() if device == "cuda" else hardware,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "monai", "numpy")},
        "python": platform.python_version(),
        "commit": commit(),
        "peak_flops": peaks,
        **({"bandwidth": bandwidth()} if device == "cuda" else {}),
    }


def report(content: Mapping[str, Any]) -> str:
    """The tables in Markdown: each contestant in its best dtype, and every cell."""
    about = content["circumstances"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    peaks = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in about["peak_flops"].items())
    lines = [
        "# Throughput against stock MONAI",
        f"{about['date']}, {about['hardware']}; Python {about['python']}, {versions}; commit {about['commit']}.",
        f"Largest matrix product measured here: {peaks}. Times are the median, and in brackets the least and the most, "
        "of steps taken in turns; memory is the peak of the process beyond its imports. Samples are symmetric pairs "
        "(training) or volumes (inference).",
        "## Each in its best dtype",
        "\n".join(best_table(content["rows"])),
        "## Every cell",
        "\n".join(cell_table(content["rows"], about["peak_flops"])),
    ]
    if bounds := list(bound_table(content["rows"], about)):
        lines += ["## What bounds a step", "\n".join(bounds)]
    if not any(row["device"] == "cuda" for row in content["rows"]):
        lines.append("On a GPU: not measured.")
    return "\n\n".join(lines) + "\n"


def best_table(rows: Sequence[Row]) -> Iterator[str]:
    """How many times the samples per second, and what share of the memory, of each stock contestant ours has."""
    yield "| task | feature size | against | speed | memory |"
    yield "|---|---|---|---|---|"
    groups = dict.fromkeys((row["task"], row["feature_size"]) for row in rows)
    for task, feature_size in groups:
        done = [r for r in rows if (r["task"], r["feature_size"]) == (task, feature_size) and "error" not in r]
        names = dict.fromkeys(r["implementation"] for r in done)
        best = {name: min((r for r in done if r["implementation"] == name), key=seconds) for name in names}
        for name, theirs in best.items():
            if name.startswith("stock") and "ours" in best:
                ours = min((best[n] for n in ("ours", "ours compiled") if n in best), key=seconds)
                speed, memory = seconds(theirs) / seconds(ours), ours["peak_bytes"] / theirs["peak_bytes"]
                names = f"{ours['dtype']}{ours['implementation'].removeprefix('ours')} against {name} {theirs['dtype']}"
                yield f"| {task} | {feature_size} | {names} | {speed:.2f}x | {memory:.2f}x |"


def cell_table(rows: Sequence[Row], peaks: Mapping[str, float]) -> Iterator[str]:
    """Every measured figure."""
    columns = "task", "feature size", "implementation", "dtype", "batch", "samples/s", "s a step", "CPU s", "peak GB"
    columns += "GFLOP a step", "share of peak", "largest batch"
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        head = f"| {row['task']} | {row['feature_size']} | {row['implementation']} | {row['dtype']} | {row['batch']} |"
        if "error" in row:
            yield f"{head} {row['error']} | | | | | | {row.get('largest_batch', '')} |"
            continue
        spread = f"{seconds(row):.3f} ({min(row['seconds']):.3f}-{max(row['seconds']):.3f})"
        share = row["flops"] / seconds(row) / peaks[row["dtype"]]
        figures = [f"{row['samples'] / seconds(row):.3g}", spread, f"{median(row['cpu_seconds']):.2f}"]
        figures += [f"{row['peak_bytes'] / 1e9:.2f}", f"{row['flops'] / 1e9:.0f}", f"{share:.0%}"]
        yield f"{head} {' | '.join(figures)} | {row.get('largest_batch', '')} |"


def bound_table(rows: Sequence[Row], about: Mapping[str, Any]) -> Iterator[str]:
    """Where a step's time goes on a GPU: milliseconds of its kernels by kind, and what bounds it."""
    rows = [row for row in rows if "kernels" in row]
    if not rows:
        return
    if "bandwidth" in about:
        yield f"A large copy moves {about['bandwidth'] / 1e12:.2f} TB/s, read and written.\n"
    kinds = list(rows[0]["kernels"])
    yield f"| task | implementation | ms a step | {' | '.join(kinds)} | bound by |"
    yield f"|{'---|' * (len(kinds) + 4)}"
    for row in rows:
        times = " | ".join(f"{1000 * row['kernels'][kind]:.1f}" for kind in kinds)
        step, why = seconds(row), bound(row["kernels"], seconds(row))
        yield f"| {row['task']} | {row['implementation']} | {1000 * step:.1f} | {times} | {why} |"


def seconds(row: Mapping[str, Any]) -> float:
    """Median time of a step."""
    return median(row["seconds"])


def main(
    device: str = "cpu",
    tasks: Sequence[str] = TASKS,
    feature_sizes: Sequence[int] | None = None,
    roi: int | None = None,
    batch: int | None = None,
    volume: Sequence[int] | None = None,
    repeats: int = 5,
    budget_minutes: float = 60.0,
    output: str = "benchmarks/results",
    redo: bool = False,
) -> None:
    """Measure, and write a table and a JSON file after each group of cells, on a GPU after each cell.

    Args:
        device: cpu or cuda.
        tasks: of pretrain, classify, segment, infer_mirrored, infer.
        feature_sizes: of the encoder; 12 and 48 on a CPU, 48 on a GPU.
        roi: side in voxels; 64 on a CPU, 96 on a GPU.
        batch: symmetric pairs; 1 on a CPU, 4 on a GPU.
        volume: X, Y, Z in voxels for inference; 96 96 64 on a CPU, 192 224 192 on a GPU.
        repeats: timed steps of each.
        budget_minutes: no group is begun later than this.
        output: folder of throughput_<device>_<date>.json and .md; what is there already is not measured again.
        redo: measure it again.
    """
    gpu = device == "cuda"
    feature_sizes = feature_sizes or ((48,) if gpu else (12, 48))
    volume = volume or ((192, 224, 192) if gpu else (96, 96, 64))
    end = time.monotonic() + 60 * budget_minutes
    path = Path(output) / f"throughput_{device}_{datetime.date.today()}.json"
    content = {"circumstances": circumstances(device), "rows": []}
    if path.exists() and not redo:
        content["rows"] = json.loads(path.read_text())["rows"]
    groups = list(
        plan(
            device,
            ensure_tuple(tasks),
            ensure_tuple(feature_sizes),
            roi or (96 if gpu else 64),
            batch or (4 if gpu else 1),
            volume,
        )
    )
    for cells in tqdm(groups, "groups", disable=None):
        known = {key(row) for row in content["rows"]}
        missing = [cell for cell in cells if key(asdict(cell)) not in known]
        for together in [[cell] for cell in missing] if gpu else [missing]:
            if not together or time.monotonic() > end:
                continue
            rows = [measure(together[0], repeats)] if gpu else contest(together, repeats)
            content["rows"] += [row | {"samples": samples(cell)} for cell, row in zip(together, rows, strict=True)]
            write(path, content)
    if gpu:
        search_batches(path, content, end)
    sys.stdout.write(report(content))


def search_batches(path: Path, content: dict[str, Any], end: float) -> None:
    """Add the largest batch that fits to the rows of training, in the time that is left."""
    for row in content["rows"]:
        training = not row["task"].startswith("infer") and "compiled" not in row["implementation"]
        if not training or "largest_batch" in row or time.monotonic() > end:
            continue
        cell = {name: row[name] for name in Cell.__dataclass_fields__}
        row["largest_batch"] = largest_batch(Cell(**cell | {"volume": tuple(cell["volume"])}))
        write(path, content)


def write(path: Path, content: Mapping[str, Any]) -> None:
    """The JSON file and the table beside it."""
    write_whole(path, json.dumps(content, indent=1) + "\n")
    write_whole(path.with_suffix(".md"), report(content))


if __name__ == "__main__":
    fire.Fire(main)
