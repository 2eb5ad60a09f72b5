from itertools import pairwise

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from torch import nn

from custom.evaluation.case_table import CaseTable
from custom.evaluation.inferers import (
    MirroredSlidingWindow,
    PretextEvaluation,
    WindowedEmbedding,
    sliding_window,
    symmetric_starts,
)
from custom.evaluation.metrics import pretext_row, pretext_summary
from custom.losses import PretextLoss
from custom.networks.pretrainer import SASwinPretrainer
from custom.networks.segmenter import SASwinUNETR
from custom.support.errors import UserError
from custom.support.precision import MixedPrecision
from custom.symmetry import mirror, symmetric_pair
from custom.transforms.views import PrepareViews


class Extremes(nn.Module):
    """Embeds an image as its mean and its largest value; asymmetry is how far those of the halves differ, at most 1."""

    def forward(self, pair):
        image, mirrored = (
            torch.stack([half.flatten(1).mean(1), half.flatten(1).amax(1)], 1) for half in pair.chunk(2, 1)
        )
        return torch.cat([(image - mirrored).abs().amax(1, keepdim=True) / 49, image], 1)


@pytest.fixture
def lesion():
    """Two brains of ones, the second with a bright spot on the left; pairs `(2, 2, 8, 4, 4)`."""
    image = torch.ones(2, 1, 8, 4, 4)
    image[1, 0, 1, 2, 2] = 50
    return symmetric_pair(image)


def test_a_volume_is_embedded_as_the_mean_of_its_windows_and_scored_by_their_peak(lesion):
    result = WindowedEmbedding((4, 4, 4), overlap=0.5)(lesion, Extremes())
    starts = (0, 2, 4)
    parts = [Extremes()(lesion[:, :, start : start + 4]) for start in starts]
    torch.testing.assert_close(result["embedding"], sum(part[:, 1:] for part in parts) / 3)
    expected = (sum((30 * part[:, 0]).exp() for part in parts) / 3).log() / 30
    torch.testing.assert_close(result["asymmetry"], expected)


def test_windows_reach_the_far_edge():
    image = torch.ones(1, 1, 10, 4, 4)
    image[..., 9, 3, 3] = 50
    result = WindowedEmbedding((4, 4, 4), overlap=0.0)(symmetric_pair(image), Extremes())
    assert result["embedding"][0, 1] > 1


def test_a_one_sided_lesion_is_asymmetric_and_a_symmetric_brain_is_not(lesion):
    asymmetry = WindowedEmbedding((4, 4, 4), overlap=0.0)(lesion, Extremes())["asymmetry"]
    assert asymmetry[0] == pytest.approx(0, abs=1e-6)
    assert asymmetry[1] > 0.1


def test_a_lesion_in_both_hemispheres_is_symmetric(lesion):
    both = torch.maximum(lesion, lesion.flip(1))
    assert WindowedEmbedding((4, 4, 4), overlap=0.0)(both, Extremes())["asymmetry"].abs().max() < 1e-6


def test_a_volume_smaller_than_the_window_is_embedded_whole(lesion):
    result = WindowedEmbedding((64, 64, 64))(lesion, Extremes())
    torch.testing.assert_close(result["embedding"], Extremes()(lesion)[:, 1:])


@pytest.fixture
def segmenter(small):
    """A segmenter that notices its counterpart, in eval mode."""
    network = SASwinUNETR(2, depths=(1, 1, 1, 1), **small).eval()
    for parameter in network.symmetry.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


@torch.no_grad()
@pytest.mark.parametrize("mode", ["gaussian", "constant"])
def test_where_the_windows_are_monais_the_logits_are_monais(segmenter, mode):
    pair = symmetric_pair(torch.randn(2, 1, 96, 64, 32))  # windows of 64 at 0 and 32: symmetric, and MONAI's own
    arguments = {"roi_size": (64, 32, 32), "sw_batch_size": 2, "overlap": 0.5, "mode": mode}
    expected = SlidingWindowInferer(**arguments)(pair, segmenter)
    found = MirroredSlidingWindow(**arguments, mirrored=False)(pair, segmenter)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    swapped = mirror(SlidingWindowInferer(**arguments)(pair.flip(1), segmenter))
    both = MirroredSlidingWindow(**arguments)(pair, segmenter)
    torch.testing.assert_close(both, (expected + swapped) / 2, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(both, expected, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("mirror_tta", [False, True])
def test_a_window_larger_than_the_volume_sees_the_volume_and_no_padding(segmenter, mirror_tta):
    pair = symmetric_pair(torch.randn(1, 1, 64, 32, 32)) + 3  # padding with 0 would be seen
    found = sliding_window((96, 96, 96), mirror_tta=mirror_tta)(pair, segmenter)
    expected = segmenter(pair)
    if mirror_tta:
        expected = (expected + mirror(segmenter(pair.flip(1)))) / 2
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    own = sliding_window((64, 32, 96), mirror_tta=mirror_tta)(pair, segmenter)  # a window fits in X and Y alone
    torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_with_the_mirrored_brain_mirroring_the_input_mirrors_the_logits(segmenter):
    pair = symmetric_pair(torch.randn(1, 1, 71, 32, 32))  # an odd width, and windows that MONAI would not lay evenly
    inferer = MirroredSlidingWindow((64, 32, 32), sw_batch_size=3)
    torch.testing.assert_close(mirror(inferer(pair, segmenter)), inferer(pair.flip(1), segmenter), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_every_window_is_encoded_once(segmenter, monkeypatch):
    encoded = []
    hidden = segmenter.swinViT.hidden
    monkeypatch.setattr(segmenter.swinViT, "hidden", lambda images: encoded.append(len(images)) or hidden(images))
    MirroredSlidingWindow((64, 32, 32), overlap=0.5)(symmetric_pair(torch.randn(1, 1, 96, 32, 32)), segmenter)
    assert encoded == [2, 2]  # two windows, two halves each


@pytest.mark.slow
@torch.no_grad()
def test_in_half_precision_the_logits_are_nearly_the_same_and_in_fp32(segmenter):
    pair = symmetric_pair(torch.randn(1, 1, 64, 32, 32))
    inferer = MirroredSlidingWindow((64, 32, 32))
    exact, half = (MixedPrecision(inferer, precision, "cpu")(pair, segmenter) for precision in ("fp32", "bf16"))
    assert half.dtype == torch.float32
    assert 0 < (half - exact).norm() / exact.norm() < 0.02


@torch.no_grad()
def test_the_logits_keep_the_place_of_a_volume_in_space(segmenter):
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    pair = MetaTensor(torch.randn(1, 2, 64, 32, 32), affine=affine)
    assert torch.equal(MirroredSlidingWindow((64, 32, 32))(pair, segmenter).affine, affine)


def test_a_network_without_both_predictions_is_not_mirrored():
    with pytest.raises(ValueError, match="needs a network with predict_both, got Extremes"):
        MirroredSlidingWindow((4, 4, 4))(torch.zeros(1, 2, 4, 4, 4), Extremes())


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_windows_lie_symmetrically_reach_both_edges_and_overlap_enough(overlap):
    for size in range(16, 90):
        starts = symmetric_starts(size, 16, overlap)
        assert starts == [size - 16 - start for start in reversed(starts)] == sorted(set(starts))
        assert starts[0] == 0
        assert max((b - a for a, b in pairwise(starts)), default=0) <= 16 * (1 - overlap)
        assert len(starts) <= -(-(size - 16) // int(16 * (1 - overlap))) + 2


@pytest.fixture
def pretraining(small):
    """A pretrainer, three labelled volumes, and a function that makes their evaluator."""
    network = SASwinPretrainer(embedding_size=8, **small)
    volumes = symmetric_pair(torch.randn(3, 1, 64, 32, 32))
    data = [
        {"image": MetaTensor(volume, meta={"filename_or_obj": f"{i}.nii.gz"}), "healthy": i > 0}
        for i, volume in enumerate(volumes)
    ]

    def make(objective="paper", labelled=True):
        loss = PretextLoss(objective)
        items = data if labelled else [{"image": case["image"]} for case in data]
        views = PrepareViews(needs_healthy=loss.needs_healthy, roi_size=(64, 32, 32), repeat=True)
        engine = SupervisedEvaluator(
            torch.device("cpu"),
            DataLoader(Dataset(items), batch_size=2),
            network,
            inferer=WindowedEmbedding((64, 32, 32)),
            iteration_update=PretextEvaluation(network, loss, views),
            key_val_metric={"neg_loss": CaseTable(pretext_row, pretext_summary)},
        )
        engine.run()
        return engine

    return network, volumes, make


def test_each_case_gets_its_zero_shot_score_and_the_losses_of_its_batch(pretraining):
    network, volumes, make = pretraining
    engine = make()
    scores = [row["asymmetry"] for row in engine.state.cases]
    assert scores == pytest.approx(network.eval()(volumes)[:, 0].tolist(), abs=1e-5)
    assert [row["healthy"] for row in engine.state.cases] == [False, True, True]
    first, second, third = (row["loss"] for row in engine.state.cases)
    assert first == second != third
    assert engine.state.metrics["neg_loss"] == pytest.approx(-(first + second + third) / 3)
    assert set(engine.state.metrics) >= {"inpainting", "rotation", "contrastive", "symmetry", "zero_shot_auc"}


def test_evaluation_twice_gives_the_same_and_leaves_the_network_as_it_was(pretraining):
    network, _, make = pretraining
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert make().state.cases == make().state.cases
    torch.testing.assert_close(network.state_dict(), before)


def test_without_labels_the_label_free_objective_is_evaluated(pretraining):
    engine = pretraining[2]("label_free", labelled=False)
    assert all("healthy" not in row for row in engine.state.cases)
    assert engine.state.metrics["neg_loss"] < 0


def test_mirrored_windows_are_refused_where_the_counterpart_is_no_mirror_image():
    with pytest.raises(UserError, match="needs pairs of an image and its mirror image, but counterpart is homologous"):
        sliding_window((64, 64, 64), mirror_tta=True, counterpart="homologous")
    assert isinstance(sliding_window((64, 64, 64), mirror_tta=True), MirroredSlidingWindow)
    assert isinstance(sliding_window((64, 64, 64), counterpart="homologous"), SlidingWindowInferer)
