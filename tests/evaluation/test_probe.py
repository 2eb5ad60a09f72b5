import numpy as np
import pytest
import torch
from ignite.engine import Engine

from custom.evaluation.probe import FrozenProbe, icc, label_figures, probed


def test_intraclass_correlation_by_hand_and_at_its_ends():
    """Shrout and Fleiss: mean squares between 4 (subjects' means 1 3 5, twice), within 1/2: (8 - 0.5) / (8 + 0.5)."""
    one, other = np.array([0.5, 2.5, 4.5]), np.array([1.5, 3.5, 5.5])
    assert icc(one, other) == pytest.approx((8 - 0.5) / (8 + 0.5))
    assert icc(one, one) == pytest.approx(1)
    assert icc(one, one[::-1]) < 0
    rng = np.random.default_rng(0)
    assert abs(icc(*rng.normal(size=(2, 4000)))) < 0.05


def test_a_label_that_the_features_hold_is_read_and_one_that_they_do_not_is_not():
    rng = np.random.default_rng(1)
    labels, subjects = ["left", "right"] * 30, [f"s{i}" for i in range(60)]
    features = rng.normal(size=(60, 8))
    assert label_figures(features, labels, subjects)["probe_linear"] == pytest.approx(0.5, abs=0.2)
    features[:, 0] += 8.0 * np.array([label == "left" for label in labels])
    found = label_figures(features, labels, subjects)
    assert found["probe_linear"] > 0.95
    assert found["probe_knn"] > 0.9


@pytest.mark.parametrize("labels", [[None] * 8, ["a"] * 8, ["a"] * 6 + ["b"] * 2])
def test_a_label_that_nobody_has_or_all_have_or_too_few_is_not_asked_for(labels):
    assert label_figures(np.random.default_rng(0).normal(size=(8, 4)), labels, list("abcdefgh")) == {}


@pytest.mark.parametrize(
    ("labels", "subjects"),
    [(["a"] * 8 + ["b"] * 3, [*"abcdefgh", "x", "x", "x"]), (["a"] * 6 + ["b"] * 6, [*"uuuvvv", *"xxxyyy"])],
)
def test_several_scans_of_one_subject_are_no_more_subjects(labels, subjects):
    assert label_figures(np.random.default_rng(0).normal(size=(len(labels), 4)), labels, subjects) == {}


def test_a_subject_with_most_of_the_scans_does_not_stop_a_training():
    labels = [*"aaaaaaaaaabab", "b", "b"]
    subjects = ["one"] * 10 + list("uvwxy")
    assert label_figures(np.random.default_rng(0).normal(size=(15, 4)), labels, subjects) == {}


def said(embedding):
    return {"embedding": torch.as_tensor(embedding), "asymmetry": torch.as_tensor(embedding[0])}


def case(embedding, label, rescan=None):
    return {"pred": said(embedding), "label": label, "subject": str(embedding)} | (
        {"rescan": said(rescan)} if rescan else {}
    )


def test_embeddings_that_all_point_one_way_are_collapsed_and_scanners_are_compared():
    spread = [case([float(i), float(-i * i), 1.0], None, [float(i), float(-i * i), 1.0 + 1e-6]) for i in range(6)]
    flat = [case([1.0 + 1e-6 * i, 0.0, 0.0], None) for i in range(6)]
    assert probed(flat)["collapse"] > probed(spread)["collapse"]
    assert "scanner_icc" not in probed(flat)
    assert probed(spread)["scanner_icc_asymmetry"] == pytest.approx(1)


def test_the_handler_adds_its_figures_every_few_evaluations():
    rng = np.random.default_rng(0)
    items = [{"subject": f"s{i}", "healthy": i % 2 == 0} for i in range(12)]
    outputs = [{"pred": said(rng.normal(size=3) + 9 * (i % 2))} for i in range(12)]

    def step(engine, batch):
        engine.state.batch = [items[i] for i in batch]
        return [outputs[i] for i in batch]

    engine = Engine(step)
    FrozenProbe("healthy", interval=2).attach(engine)
    seen = []
    for epoch in (1, 2, 3):
        engine.state.epoch, engine.state.max_epochs = epoch - 1, epoch  # as MONAI's evaluator is told the trainer's
        engine.run([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]])
        seen.append(engine.state.metrics.get("probe_linear"))
    assert seen == [None, 1.0, None]
