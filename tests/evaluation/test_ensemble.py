import math

import pytest
import torch
from monai.inferers import SimpleInferer
from torch import nn

from custom.evaluation.ensemble import Ensemble, MeanOfMembersd, disagreement, ensemble_of
from custom.weights.transfer import WeightsError


class Scaled(nn.Module):
    """Logits `(B, 2, ...)`: nothing, and an image times a weight."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.drop = nn.Dropout(0.5)

    def forward(self, image):
        return torch.cat([torch.zeros_like(image), self.drop(image * self.factor)], 1)


@pytest.fixture
def checkpoints(tmp_path):
    """Weights of three members."""
    paths = []
    for number, factor in enumerate((1.0, 2.0, -1.0)):
        paths.append(str(tmp_path / f"{number}.pt"))
        torch.save(Scaled(factor).state_dict(), paths[-1])
    return paths


def test_the_mean_of_members_is_that_of_their_probabilities_by_hand(checkpoints):
    network = Scaled().eval()
    image = torch.tensor([0.0, 1.0, -2.0]).reshape(1, 1, 3, 1, 1)
    logits = ensemble_of(SimpleInferer(), network, checkpoints)(image, network)
    assert logits.shape == (1, 6, 3, 1, 1)
    out = MeanOfMembersd("pred", 3)({"pred": logits[0]})
    shares = [[1 / (1 + math.exp(-x * factor)) for factor in (1, 2, -1)] for x in (0.0, 1.0, -2.0)]
    assert out["pred"][1].flatten().tolist() == pytest.approx([sum(share) / 3 for share in shares])
    assert out["pred"].sum(0).flatten().tolist() == pytest.approx([1, 1, 1])
    spread = [math.sqrt(sum((p - sum(share) / 3) ** 2 for p in share) / 3) for share in shares]
    assert out["disagreement"].shape == (1, 3, 1, 1)
    assert out["disagreement"].flatten().tolist() == pytest.approx(spread, abs=1e-7)


def test_one_member_is_the_softmax_and_disagrees_with_nobody():
    logits = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    out = MeanOfMembersd("pred")({"pred": logits})
    assert torch.equal(out["pred"], logits.softmax(0))
    assert out.keys() == {"pred"}
    inferer = SimpleInferer()
    assert ensemble_of(inferer, Scaled(), ["one.pt"]) is inferer


def test_members_disagree_by_at_most_a_half_and_not_at_all_where_they_say_the_same():
    certain = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert disagreement(certain).tolist() == [0.5]
    assert disagreement(certain[:1].expand(4, 2)).tolist() == [0.0]


def test_a_classifiers_members_are_averaged_as_well(checkpoints):
    network = Scaled().eval()
    logits = Ensemble(SimpleInferer(), network, checkpoints[1:2])(torch.tensor([[1.0]]), network)
    out = MeanOfMembersd("pred", 2)({"pred": logits[0]})
    assert out["pred"][1].item() == pytest.approx((1 / (1 + math.exp(-1)) + 1 / (1 + math.exp(-2))) / 2)


def test_a_member_that_does_not_fit_is_refused(tmp_path):
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pt")
    inferer = Ensemble(SimpleInferer(), Scaled(), [str(tmp_path / "other.pt")])
    with pytest.raises(WeightsError, match="at least 100% must match"):
        inferer(torch.zeros(1, 1, 2, 2, 2), Scaled())
