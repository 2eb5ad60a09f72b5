import json
import socket
from dataclasses import asdict, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import scaling
from benchmarks.on_gpu import bound, kind_of
from benchmarks.stock import StockClassifier, StockPretrainer, StockUNETR
from benchmarks.tasks import Cell, build, flops
from benchmarks.throughput import report
from custom.networks.classifier import SASwinClassifier
from custom.networks.pretrainer import SASwinPretrainer
from custom.networks.segmenter import SASwinUNETR
from custom.symmetry import symmetric_pair

CELL = Cell("segment", "ours", "fp32", 12, 1, 64, (96, 64, 64), "cpu")


@torch.no_grad()
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize(
    ("stock", "ours"),
    [(StockPretrainer, SASwinPretrainer), (StockClassifier, SASwinClassifier), (StockUNETR, SASwinUNETR)],
)
def test_the_stock_composition_computes_the_same_outputs(stock, ours, separate):
    options = {"out_channels": 2} if ours is SASwinUNETR else {}
    theirs = stock(12, separate, use_checkpoint=False)
    torch.manual_seed(0)
    network = ours(readout="paper", feature_size=12, **options)
    assert not any(type(part).__module__.startswith("custom.networks.channels_last") for part in theirs.modules())
    pair = symmetric_pair(torch.randn(2, 1, 64, 32, 32))
    for part in (theirs.symmetry, network.symmetry):
        part.eval()  # its dropout would differ
    torch.testing.assert_close(theirs(pair), network(pair), atol=1e-4, rtol=1e-4)


def test_operations_are_those_of_the_products_and_windows():
    small = replace(CELL, task="classify")
    assert flops(replace(small, batch=2)) == 2 * flops(small)
    windows = replace(CELL, task="infer", volume=(96, 64, 64))  # two windows with half an overlap
    network = SASwinUNETR(out_channels=2, readout="paper", feature_size=12).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta")(torch.empty(1, 2, 64, 64, 64, device="meta"))
    assert flops(windows) == 2 * counter.get_total_flops()
    ours, theirs = (flops(replace(windows, task="infer_mirrored", implementation=name)) for name in ("ours", "stock"))
    assert flops(windows) < ours < 2 * flops(windows) < 1.02 * theirs


def test_a_process_of_the_scaling_benchmark_tells_its_times_and_memory(monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "RANK": "0", "WORLD_SIZE": "1"}
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    scaling.worker(asdict(CELL), repeats=2)
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(row["seconds"]) == len(row["cpu_seconds"]) == 2
    assert min(row["seconds"]) > 0
    assert row["peak_bytes"] >= 0


def test_kernels_are_told_apart_and_the_bound_is_named():
    names = ["fmha_cutlassB_bf16", "sm80_xmma_wgrad_implicit_gemm", "nvjet_hsh_128", "vectorized_layer_norm_kernel"]
    assert [kind_of(name) for name in names] == ["attention", "convolution", "matrix product", "memory traffic"]
    kernels = {"attention": 0.01, "convolution": 0.0, "matrix product": 0.01, "memory traffic": 0.06}
    assert bound(kernels, 0.16) == "the host: kernels run 50% of the time"
    assert bound(kernels, 0.08) == "memory traffic: 75% of the kernels' time"


@pytest.mark.slow
def test_a_step_trains_and_the_mirrored_inference_is_stocks():
    step = build(replace(CELL, task="classify", roi=64))
    first = step()
    assert step() < first
    ours, stock = (build(replace(CELL, task="infer_mirrored", implementation=name))() for name in ("ours", "stock"))
    torch.testing.assert_close(ours, stock, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "implementation", ["ours", *(pytest.param(f"stock{s}", marks=pytest.mark.slow) for s in ("", " best"))]
)
@pytest.mark.parametrize("task", ["infer", "infer_mirrored", "segment"])
def test_every_cell_runs_in_the_precision_that_its_row_names(implementation, task, convolved_in):
    build(replace(CELL, task=task, implementation=implementation, dtype="bf16"))()
    assert convolved_in == {torch.bfloat16}


def test_the_report_compares_each_in_its_best_dtype():
    row = CELL.__dict__ | {"samples": 2, "flops": 10**9, "result": 0.0, "cpu_seconds": [1.0]}
    rows = [
        row | {"seconds": [1.0, 2.0, 9.0], "peak_bytes": 10**9},
        row | {"seconds": [3.0], "peak_bytes": 10**9, "dtype": "bf16"},
        row | {"seconds": [5.0], "peak_bytes": 4 * 10**9, "implementation": "stock", "dtype": "bf16"},
        row | {"implementation": "stock", "error": "out of memory"},
    ]
    about = {"date": "today", "hardware": "a CPU", "python": "3", "versions": {}, "commit": "abc"}
    text = report({"circumstances": about | {"peak_flops": {"fp32": 1e9, "bf16": 2e9}}, "rows": rows})
    assert "| segment | 12 | fp32 against stock bf16 | 2.50x | 0.25x |" in text
    assert "| segment | 12 | ours | fp32 | 1 | 1 | 2.000 (1.000-9.000) | 1.00 | 1.00 | 1 | 50% |  |" in text
    assert "| segment | 12 | stock | fp32 | 1 | out of memory |" in text
    assert "On a GPU: not measured." in text
    rows.append(row | {"seconds": [0.5], "peak_bytes": 2 * 10**9, "implementation": "ours compiled"})
    text = report({"circumstances": about | {"peak_flops": {"fp32": 1e9, "bf16": 2e9}}, "rows": rows})
    assert "| segment | 12 | fp32 compiled against stock bf16 | 10.00x | 0.50x |" in text
