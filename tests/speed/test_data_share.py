import pytest
import torch

from benchmarks import data_share


def test_the_share_is_that_of_all_waits_in_the_time_of_all_steps(monkeypatch):
    times = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.5, 0.0, 0.5]), torch.tensor([0.2, 0.5, 0.1])
    monkeypatch.setattr(data_share, "measured", lambda *_: times)
    row = data_share.row("segment", {"feature_size": 12, "cache_rate": 0.5, "num_workers": 2})
    assert row == {
        "task": "segment",
        "feature_size": 12,
        "cache_rate": 0.5,
        "num_workers": 2,
        "steps": 3,
        "seconds_a_step": 2.0,
        "share": pytest.approx(0.1),
        "volumes_a_second": pytest.approx(5.0),
    }
    about = {"date": "today", "hardware": "a CPU", "versions": {}, "commit": "abc", "spatial_size": [2, 3, 4]}
    *_, last = data_share.table({"circumstances": about, "rows": [row]})
    assert last == "| segment | 12 | 0.5 | 2 | 3 | 2.00 | 10.0% | 5.0 |"


def test_the_first_epoch_is_not_counted(tiny_cohort, monkeypatch):
    sizes = {"spacing": 6.0, "spatial_size": [32, 64, 32], "roi_size": [32, 64, 32], "window_size": 4}
    settings = {"dataset_dir": str(tiny_cohort), "align": False, "num_workers": 0, "batch_size": 1, "limit": 2}
    settings |= {"max_epochs": 3, "warmup_epochs": 0, "val_interval": 4, "feature_size": 12, "num_heads": [1, 2, 4, 8]}
    steps, waits, loading = data_share.measured("segment", settings | sizes)
    assert len(steps) == len(waits) == 4
    assert len(loading) == 2
    assert (waits > 0).all()
