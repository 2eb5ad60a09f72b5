"""The asymmetry map as the last channel of each half: sizes, and the evidence of its peaks."""

import pytest
import torch
from monai.networks.nets import SwinUNETR

from custom.networks import SASwinClassifier, SASwinPretrainer, SASwinUNETR
from custom.networks.readouts import MAP_SHARPNESS


@pytest.fixture
def pair():
    return torch.randn(2, 4, 32, 64, 32)


@torch.no_grad()
def test_the_peaks_of_the_map_are_the_finest_scale_of_the_evidence(small, pair):
    network = SASwinClassifier(3, asymmetry_map=True, **small).eval()
    norm, linear = network.head[-1]
    norm.running_mean.uniform_(-1, 1)
    torch.nn.init.normal_(linear.weight)
    places = pair[:, 1].flatten(1)
    peaks = [(sharp * places).exp().mean(1).log() / sharp for sharp in MAP_SHARPNESS]
    normed = (torch.stack(peaks, 1) - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    evidence = (normed @ linear.weight.T + linear.bias).log_softmax(1)
    others = network.logits(pair)[..., 1:].log_softmax(1)
    by_hand = (16 * evidence + (others * torch.tensor([8, 4, 2, 1])).sum(-1)) / 31
    torch.testing.assert_close(network(pair), by_hand, atol=1e-4, rtol=1e-4)


def test_the_evidence_of_the_map_starts_at_nothing_and_is_trained_by_itself(small, pair):
    network = SASwinClassifier(3, asymmetry_map=True, **small).train()
    logits = network(pair)
    assert logits.shape == (2, 3, 5)
    assert not logits[..., 0].any()
    torch.nn.functional.cross_entropy(logits[..., 0], torch.tensor([0, 1])).backward()
    moved = {name for name, parameter in network.named_parameters() if parameter.grad.any()}
    assert moved == {"head.4.1.weight", "head.4.1.bias"}


@torch.no_grad()
def test_with_the_map_the_segmenter_is_monais_swin_unetr_of_two_channels(small, pair):
    ours = SASwinUNETR(out_channels=2, symmetry="none", asymmetry_map=True, **small).eval()
    sizes = {name: small[name] for name in ("feature_size", "window_size", "depths", "num_heads") if name in small}
    stock = SwinUNETR(in_channels=2, out_channels=2, **sizes).eval()
    ours.load_state_dict(stock.state_dict(), strict=False)
    torch.testing.assert_close(ours(pair), stock(pair[:, :2]), atol=1e-4, rtol=1e-4)


def test_the_pretrainer_restores_the_image_and_its_map(small, pair):
    network = SASwinPretrainer(embedding_size=8, asymmetry_map=True, **small).train()
    assert network(pair)["inpainting"].shape == (2, 2, 32, 64, 32)


def test_no_map_no_evidence_of_it(small):
    assert len(SASwinClassifier(**small).head) == 4
    assert len(SASwinClassifier(asymmetry_map=True, **small).head) == 5
