import pytest
import torch

from custom.symmetry import mirror, symmetric_pair
from sa_swin.study.normative import FLOOR, NormativeAsymmetry, smoothed_difference

SPACING = (5.0, 5.0, 5.0)


def brain(seed, lesion=0.0, side=1):
    """A pair of a symmetric blob with noise, and a bright ball on one side (1: right, -1: left)."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, 24)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    image = torch.exp(-(x**2 + y**2 + z**2)) + 0.1 * torch.randn(x.shape, generator=generator)
    ball = ((x - 0.5 * side) ** 2 + y**2 + z**2) < 0.05
    return symmetric_pair((image + lesion * ball)[None])


@pytest.fixture(scope="module")
def norm():
    return NormativeAsymmetry.of((brain(seed) for seed in range(12)), SPACING)


def test_a_mirror_image_of_itself_has_no_asymmetry():
    image = brain(0)[:1]
    assert smoothed_difference(symmetric_pair(image + mirror(image)), SPACING).abs().max() < 1e-6


def test_the_map_is_the_same_on_both_sides():
    found = smoothed_difference(brain(1, lesion=2.0), SPACING)
    torch.testing.assert_close(found, mirror(found), atol=1e-5, rtol=0)


def test_channels_are_averaged():
    pair = brain(2)
    twice = torch.cat([pair[:1], pair[:1], pair[1:], pair[1:]])
    torch.testing.assert_close(smoothed_difference(twice, SPACING), smoothed_difference(pair, SPACING))


def test_a_lesion_on_either_side_scores_above_every_healthy_brain(norm):
    healthy = [norm.score(brain(seed)) for seed in range(100, 130)]
    assert max(healthy) < min(norm.score(brain(seed, 1.0, side)) for seed in range(5) for side in (1, -1))


def test_a_lesion_with_a_twin_does_not(norm):
    healthy = sorted(norm.score(brain(seed)) for seed in range(100, 130))
    twins = [brain(seed, 1.0)[:1] + brain(seed, 1.0, -1)[:1] - brain(seed)[:1] for seed in range(200, 205)]
    assert all(norm.score(symmetric_pair(image)) < 1.5 * healthy[-1] for image in twins)


def test_the_z_map_is_the_distance_from_the_mean_in_deviations(norm):
    pair = brain(3)
    by_hand = (smoothed_difference(pair, SPACING) - norm.mean) / (norm.deviation + FLOOR)
    torch.testing.assert_close(norm.z_map(pair), by_hand)
    assert norm.score(pair) == pytest.approx(float(by_hand.quantile(0.99)), abs=0.02)


def test_the_norm_is_that_of_its_subjects():
    pairs = [brain(seed) for seed in range(3)]
    norm = NormativeAsymmetry.of(pairs, SPACING)
    stacked = torch.stack([smoothed_difference(pair, SPACING) for pair in pairs])
    torch.testing.assert_close(norm.mean, stacked.mean(0))
    torch.testing.assert_close(norm.deviation, stacked.std(0))
    assert norm.healthy == 3


def test_one_subject_is_no_norm():
    with pytest.raises(ValueError, match="a norm needs two healthy subjects or more, got 1"):
        NormativeAsymmetry.of([brain(0)], SPACING)
