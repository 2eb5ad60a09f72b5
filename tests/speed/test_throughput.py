from dataclasses import replace

import pytest
import torch

from benchmarks.stock import StockClassifier, StockPretrainer, StockUNETR
from benchmarks.tasks import Cell, attention_flops, build, flops
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
    options = {"out_channels": 2} if ours is SASwinUNETR else {"readout": "paper"}
    theirs = stock(12, separate, use_checkpoint=False)
    torch.manual_seed(0)
    network = ours(feature_size=12, **options)
    assert not any(type(part).__module__.startswith("custom.networks.channels_last") for part in theirs.modules())
    pair = symmetric_pair(torch.randn(2, 1, 64, 32, 32))
    for part in (theirs.symmetry, network.symmetry):
        part.eval()  # its dropout would differ
    torch.testing.assert_close(theirs(pair), network(pair), atol=1e-4, rtol=1e-4)


def test_operations_of_the_fused_attention_are_counted():
    assert attention_flops((2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 4)) == 2 * 3 * (2 * 5 * 6 * 4 + 2 * 5 * 6 * 4)
    with torch.no_grad():
        query = torch.randn(1, 3, 64, 16)
        counted = flops(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query))
    assert counted == 4 * 3 * 64 * 64 * 16


def test_a_step_trains_and_the_mirrored_inference_is_stocks():
    step = build(replace(CELL, task="classify", roi=64))
    first = step()
    assert step() < first
    ours, stock = (build(replace(CELL, task="infer_mirrored", implementation=name))() for name in ("ours", "stock"))
    torch.testing.assert_close(ours, stock, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("implementation", ["ours", "stock", "stock best"])
@pytest.mark.parametrize("task", ["infer", "infer_mirrored", "segment"])
def test_every_cell_runs_in_the_precision_that_its_row_names(implementation, task, monkeypatch):
    computed = set()
    convolve = torch.nn.Conv3d.forward

    def noted(layer, image):  # a CPU without bf16 instructions takes minutes for what autocast asks of it
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else image.dtype
        computed.add(dtype)
        with torch.autocast("cpu", enabled=False):
            return convolve(layer, image.float()).to(dtype)

    monkeypatch.setattr(torch.nn.Conv3d, "forward", noted)
    build(replace(CELL, task=task, implementation=implementation, dtype="bf16"))()
    assert computed == {torch.bfloat16}


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
