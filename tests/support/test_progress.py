"""Progress is a bar where somebody looks at a terminal, and lines of plain text where it is kept in a file."""

import itertools
import sys
from types import SimpleNamespace

import pytest
from ignite.engine import Engine

from custom.support import progress
from custom.support.progress import Progress, followed


@pytest.fixture
def every_half_minute(monkeypatch):
    clock = itertools.count(0.0, 30.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))


def test_cases_are_told_at_the_first_now_and_then_and_at_the_last(capsys, every_half_minute):
    results = [("case", n) for n in range(6)]
    assert list(followed(iter(results), 6, "align")) == results
    assert capsys.readouterr().err.splitlines() == [f"align: {n} of 6 cases" for n in (1, 3, 5, 6)]


def test_a_training_tells_a_step_a_minute_with_its_epoch_and_no_carriage_returns(capsys, every_half_minute):
    engine = Engine(lambda engine, batch: None)
    Progress("training").attach(engine)
    engine.run([0, 1, 2], max_epochs=2)
    lines = ["training: epoch 1 of 2, 2 of 3", "training: epoch 2 of 2, 1 of 3", "training: epoch 2 of 2, 3 of 3"]
    assert capsys.readouterr().err == "\n".join([*lines, ""])


def test_an_engine_that_cannot_know_its_length_is_told_it(capsys, every_half_minute):
    engine = Engine(lambda engine, batch: None)
    Progress("inference", total=4).attach(engine)
    engine.run(iter(range(4)), max_epochs=1)
    assert capsys.readouterr().err.splitlines() == ["inference: 2 of 4", "inference: 4 of 4"]


def test_on_a_terminal_there_is_a_bar_with_the_total(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    engine = Engine(lambda engine, batch: None)
    Progress("inference", total=4).attach(engine)
    engine.run(iter(range(4)), max_epochs=1)
    assert "inference: [1/4]" in capsys.readouterr().err
