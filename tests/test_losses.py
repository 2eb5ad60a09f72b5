import math

import pytest
import torch
from monai.losses import ContrastiveLoss
from torch.nn import functional as F

from custom.losses import OBJECTIVES, PretextLoss, contrastive_loss, pretext_weights, symmetry_loss


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def symmetry_by_hand(asymmetry, healthy, margin):
    """One pair after the other, in plain Python."""
    total = 0.0
    for value, is_healthy in zip(asymmetry.tolist(), healthy, strict=True):
        s = 1 - value
        total += 1 - s if is_healthy else max(0.0, s - margin)
    return total / len(healthy)


def nt_xent_by_hand(first, second, temperature):
    """Chen et al. 2020, eq. 1: each of the 2N embeddings against its other view and the 2N - 2 rest."""
    z = [*first.tolist(), *second.tolist()]
    count = len(first)
    total = 0.0
    for i in range(2 * count):
        j = (i + count) % (2 * count)
        terms = {k: math.exp(cosine(z[i], z[k]) / temperature) for k in range(2 * count) if k != i}
        total -= math.log(terms[j] / sum(terms.values()))
    return total / (2 * count)


@pytest.fixture
def batch():
    """Outputs and targets of three cases in two views."""
    pred = {
        "inpainting": torch.randn(6, 1, 4, 3, 2),
        "rotation": torch.randn(6, 4),
        "contrastive": torch.randn(6, 5),
        "asymmetry": 2 * torch.rand(6),
    }
    target = {
        "image": torch.randn(6, 1, 4, 3, 2),
        "rotation": torch.tensor([0, 1, 2, 3, 0, 1]),
        "healthy": torch.tensor([True, False, True]).repeat(2),
    }
    return pred, target


@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.3])
@pytest.mark.parametrize("healthy", [[True] * 4, [False] * 4, [True, False, False, True]])
def test_the_symmetry_loss_is_its_formula_pair_by_pair(healthy, margin):
    asymmetry = 2 * torch.rand(4)
    expected = symmetry_by_hand(asymmetry, healthy, margin)
    assert symmetry_loss(asymmetry, torch.tensor(healthy), margin).item() == pytest.approx(expected, abs=1e-6)


def test_a_healthy_pair_is_pulled_together_and_an_abnormal_one_apart():
    same, opposite = torch.tensor([0.0]), torch.tensor([2.0])
    healthy, abnormal = torch.tensor([True]), torch.tensor([False])
    assert [symmetry_loss(pair, healthy).item() for pair in (same, opposite)] == [0, 2]
    assert [symmetry_loss(pair, abnormal).item() for pair in (same, opposite)] == [1, 0]


def test_without_labels_every_pair_is_taken_as_healthy():
    asymmetry = 2 * torch.rand(4)
    assert torch.equal(symmetry_loss(asymmetry), symmetry_loss(asymmetry, torch.ones(4, dtype=torch.bool)))


def test_the_gradient_of_the_symmetry_loss_is_right():
    asymmetry = torch.tensor([0.2, 0.4, 0.9, 1.4], dtype=torch.float64, requires_grad=True)
    symmetry_loss(asymmetry, torch.tensor([True, False, True, False]), -0.1).backward()
    assert asymmetry.grad.tolist() == [0.25, -0.25, 0.25, 0.0]


def test_a_wrong_number_of_labels_is_refused():
    with pytest.raises(ValueError, match=r"got \(3,\) for 2 images"):
        symmetry_loss(torch.zeros(2), torch.ones(3, dtype=torch.bool))


def test_the_contrastive_loss_is_monais():
    one, other = torch.randn(2, 5, 7, dtype=torch.float64)
    expected = ContrastiveLoss(temperature=0.3)(one, other)
    torch.testing.assert_close(contrastive_loss(one, other, 0.3), expected)
    assert contrastive_loss(one, one, 0.3) < contrastive_loss(one, other, 0.3)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_contrastive_part_is_nt_xent_between_the_views(batch, temperature):
    pred, target = batch
    loss = PretextLoss("paper", temperature=temperature)
    loss(pred, target)
    expected = nt_xent_by_hand(pred["contrastive"][:3], pred["contrastive"][3:], temperature)
    assert loss.parts["contrastive"] == pytest.approx(expected, abs=1e-5)


def test_the_paper_objective_weighs_its_four_parts_one_one_one_half(batch):
    pred, target = batch
    loss = PretextLoss("paper", margin=0.2)
    total = loss(pred, target).item()
    difference = (pred["inpainting"] - target["image"]).abs().flatten().tolist()
    by_hand = {
        "inpainting": sum(difference) / len(difference),
        "rotation": F.nll_loss(pred["rotation"].log_softmax(1), target["rotation"]).item(),
        "contrastive": nt_xent_by_hand(pred["contrastive"][:3], pred["contrastive"][3:], 0.5),
        "symmetry": symmetry_by_hand(pred["asymmetry"], target["healthy"].tolist(), 0.2),
    }
    assert loss.parts == pytest.approx({"loss": total, **by_hand}, abs=1e-5)
    assert total == pytest.approx(
        by_hand["inpainting"] + by_hand["rotation"] + by_hand["contrastive"] + 0.5 * by_hand["symmetry"]
    )


@pytest.mark.parametrize(
    ("objective", "parts", "needs_healthy"),
    [
        ("paper", ["inpainting", "rotation", "contrastive", "symmetry"], True),
        ("label_free", ["inpainting", "rotation", "contrastive", "symmetry"], False),
        ("no_symmetry", ["inpainting", "rotation", "contrastive"], False),
        ("reconstruction", ["inpainting"], False),
    ],
)
def test_an_objective_has_its_parts_and_needs_labels_only_to_push(batch, objective, parts, needs_healthy):
    pred, target = batch
    loss = PretextLoss(objective)
    assert loss.needs_healthy == needs_healthy
    if not needs_healthy:
        del target["healthy"]
    total = loss(pred, target)
    assert list(loss.parts) == ["loss", *parts]
    torch.testing.assert_close(total, sum(OBJECTIVES[objective][part] * loss.parts[part] for part in parts))


def test_a_named_weight_replaces_the_objectives(batch):
    loss = PretextLoss("paper", {"rotation": 0, "symmetry": 2.0})
    loss(*batch)
    assert "rotation" not in loss.parts
    parts = loss.parts
    torch.testing.assert_close(parts["loss"], parts["inpainting"] + parts["contrastive"] + 2 * parts["symmetry"])


def test_every_part_is_learned_from(batch):
    pred, target = batch
    for value in pred.values():
        value.requires_grad_()
    PretextLoss("paper", margin=-1.0)(pred, target).backward()
    assert all(value.grad.abs().sum() > 0 for value in pred.values())


def test_an_unknown_objective_is_refused():
    known = "paper, balanced, label_free, no_symmetry, reconstruction, painted"
    with pytest.raises(ValueError, match=f"unknown objective 'papers', choose one of {known}"):
        PretextLoss("papers")


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"unknown pretext task \['rotate'\], choose from inpainting, rotation"):
        PretextLoss("paper", {"rotate": 1.0})


@pytest.mark.parametrize(
    "weights", [{"rotation": -1.0}, dict.fromkeys(("inpainting", "rotation", "contrastive", "symmetry"), 0)]
)
def test_negative_weights_and_no_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"must not be negative, and one must be positive, got {'inpainting'"):
        pretext_weights("paper", weights)
