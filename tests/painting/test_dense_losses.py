import math

import pytest
import torch

from custom.losses import UNKNOWN, PretextLoss, homologous_loss, lesion_loss, tissue_loss
from custom.support.errors import UserError


def test_tissue_is_cross_entropy_over_the_places_that_are_known():
    logits = torch.zeros(1, 2, 1, 1, 3)
    logits[0, 1, 0, 0, 1] = math.log(3)
    tissue = torch.tensor([0, 1, UNKNOWN]).view(1, 1, 1, 1, 3)
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert tissue_loss(logits, tissue).item() == pytest.approx(expected)
    assert tissue_loss(logits, torch.full_like(tissue, UNKNOWN)).item() == 0


def test_lesion_is_entropy_and_dice_of_the_images_in_which_it_is_known():
    logits = torch.zeros(3, 1, 1, 1, 4)
    lesion = torch.zeros(3, 1, 1, 1, 4)
    lesion[0, ..., :2] = 1
    lesion[2] = UNKNOWN
    with_lesion = math.log(2) + 1 - (2 * 1 + 1) / (2 + 2 + 1)
    without = math.log(2)
    assert lesion_loss(logits, lesion).item() == pytest.approx((with_lesion + without) / 2)
    sure = 20 * (2 * lesion[:2] - 1)
    assert lesion_loss(sure, lesion[:2]).item() == pytest.approx(0, abs=1e-6)
    assert lesion_loss(logits, torch.full_like(lesion, UNKNOWN)).item() == 0


def test_a_place_is_found_by_its_own_embedding_alone_in_the_other_scanner_and_at_its_homologous_place():
    own = torch.eye(8).view(1, 1, 8, 2, 2, 2)
    places, alike = own.expand(2, 2, -1, -1, -1, -1), torch.ones(2, 1, 8, 8, 8, dtype=torch.bool)
    assert homologous_loss(places, alike).item() < 1e-3
    swapped = torch.cat([places[:1], places[1:].flip(3)])  # the other scanner's places are others
    assert homologous_loss(swapped, alike).item() > 5
    nothing = torch.ones_like(places)
    assert homologous_loss(nothing, alike).item() == pytest.approx(math.log(8), rel=1e-4)
    half = alike.clone()
    half[:, :, 4:] = False
    assert homologous_loss(nothing, half).item() == pytest.approx(math.log(4), rel=1e-4)


def test_the_painted_objective_weighs_its_tasks_and_passes_over_those_without_labels():
    loss = PretextLoss("painted", {"homologous": 0.5})
    pred = {"tissue": torch.zeros(2, 5, 4, 4, 4), "lesion": torch.zeros(2, 1, 4, 4, 4), "asymmetry": torch.zeros(2)}
    pred["places"] = torch.ones(2, 2, 3, 1, 1, 1)
    target = {
        "tissue": torch.zeros(2, 1, 4, 4, 4, dtype=torch.long),
        "lesion": torch.zeros(2, 1, 4, 4, 4),
        "alike": torch.ones(2, 1, 4, 4, 4, dtype=torch.bool),
        "healthy": torch.tensor([True, False]),
    }
    total = loss(pred, target)
    assert loss.dense
    assert loss.painted_only
    assert set(loss.parts) == {"loss", "tissue", "lesion", "homologous"}
    assert total.item() == pytest.approx(loss.parts["tissue"].item() + loss.parts["lesion"].item())
    assert loss.parts["tissue"].item() == pytest.approx(math.log(5))
    mixed = PretextLoss("painted", {"symmetry": 0.25}, painted=0.5)
    assert mixed(pred, {"healthy": target["healthy"]}).item() == pytest.approx(0.125)
    assert PretextLoss("painted")(pred, {}).item() == 0
    assert loss(pred, {}).item() == 0
    assert loss.parts == {}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("painted", {}, 0.0), "give --painted a share above 0"),
        (("painted", {}, 0.5), "asks nothing of brains that are not painted"),
        (("paper", {"homologous": 0.5}, 1.0), "views that are not turned"),
    ],
)
def test_tasks_without_brains_and_brains_without_tasks_are_refused(arguments, reason):
    objective, weights, painted = arguments
    with pytest.raises(UserError, match=reason):
        PretextLoss(objective, weights, painted=painted)
