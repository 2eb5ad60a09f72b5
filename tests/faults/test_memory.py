"""A long training does not grow: as many epochs as the longest default, which takes days at its full size."""

import statistics
from pathlib import Path

import pytest
import yaml
from bundle_runs import TASKS, config_files, finished, log_of
from faults import RecordMemory

pytestmark = pytest.mark.slow


def longest():
    """The largest `max_epochs` among the bundles' configs."""
    configs = [yaml.safe_load(Path(config_files(task)[0]).read_text()) for task in TASKS]
    return max(config["max_epochs"] for config in configs)


def test_memory_is_flat_over_as_many_epochs_as_the_longest_training_has(tiny_cohort, tmp_path):
    epochs = longest()
    changes = {"max_epochs": epochs, "limit": 2, "patience": epochs, "before": RecordMemory(tmp_path / "memory.txt")}
    assert finished("classify", tiny_cohort, tmp_path, **changes) == 0, log_of(tmp_path)[-3000:]
    memory = [int(line) for line in (tmp_path / "memory.txt").read_text().split()]
    assert len(memory) == epochs
    warm, last = (statistics.median(memory[i : i + 20]) for i in (20, epochs - 20))
    print(f"MiB after 30 epochs: {warm / 2**20:.0f}, after {epochs}: {last / 2**20:.0f}")
    assert last < 1.02 * warm
