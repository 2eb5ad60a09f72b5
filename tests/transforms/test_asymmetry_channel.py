import pytest
import torch
import torch.nn.functional as F
from asymmetric_heads import SIZE, SPACING, head, radius

from custom.support.errors import UserError
from custom.symmetry import mirror, split_pair, symmetric_pair
from custom.transforms.asymmetry_channel import SPREAD, USUAL, with_asymmetry
from custom.transforms.asymmetry_map import asymmetry_map, brain
from custom.transforms.contract import InputContract
from custom.transforms.intensity import Z_RANGE, standardize_mr


@pytest.fixture(scope="module")
def image():
    return standardize_mr(head(lesion=2.0)[0])[None]


def test_both_halves_get_their_map_and_are_else_as_they_were(image):
    one, other = split_pair(with_asymmetry(symmetric_pair(image), SPACING))
    assert torch.equal(one[:, :1], image)
    assert torch.equal(other[:, :1], mirror(image))
    by_hand = (asymmetry_map(image, SPACING).difference - USUAL) / SPREAD
    torch.testing.assert_close(one[:, 1:], by_hand.clamp(*Z_RANGE))
    torch.testing.assert_close(other[:, 1:], mirror(one[:, 1:]))


def test_several_contrasts_have_one_map_together(image):
    both = torch.cat([image, head(seed=1)], 1)
    one, other = split_pair(with_asymmetry(symmetric_pair(both), SPACING))
    assert one.shape == other.shape == (1, 3, *SIZE)
    assert torch.equal(other[:, :2], mirror(both))


def test_the_lesion_stands_out_and_healthy_brain_is_near_zero(image):
    channel = with_asymmetry(symmetric_pair(image), SPACING)[:, 1:2]
    ball = (radius((30.0, 0.0, 0.0)) < 10)[None, None]
    elsewhere = (radius((30.0, 0.0, 0.0)) > 40)[None, None] & (radius((-30.0, 0.0, 0.0)) > 40)[None, None]
    assert channel[ball].mean() > 2
    assert channel[elsewhere & brain(image, SPACING)].median().abs() < 1


def test_the_map_is_of_the_counterpart_that_is_given(image):
    itself = with_asymmetry(torch.cat([image, image], 1), SPACING)
    least = (0 - USUAL) / SPREAD  # no difference anywhere
    torch.testing.assert_close(itself[:, 1], torch.full_like(itself[:, 1], least), atol=0.01, rtol=0)


def test_finer_voxels_have_nearly_the_same_map(image):
    fine = F.interpolate(image, scale_factor=3, mode="trilinear")
    found = with_asymmetry(symmetric_pair(fine), [side / 3 for side in SPACING])[:, 1:2]
    coarse = with_asymmetry(symmetric_pair(image), SPACING)[:, 1:2]
    assert found.shape[2:] == fine.shape[2:]
    again = F.interpolate(found, SIZE, mode="area")
    assert torch.corrcoef(torch.stack([again.flatten(), coarse.flatten()]))[0, 1] > 0.9


def test_a_known_brain_is_not_looked_for(image):
    inside = brain(image, SPACING)
    pair = symmetric_pair(image)
    torch.testing.assert_close(with_asymmetry(pair, SPACING, inside), with_asymmetry(pair, SPACING))
    nowhere = with_asymmetry(pair, SPACING, torch.zeros_like(inside))[:, 1]
    torch.testing.assert_close(nowhere, torch.full_like(nowhere, (0 - USUAL) / SPREAD))


def test_a_map_of_ct_is_refused():
    with pytest.raises(UserError, match="an asymmetry map of MR alone; give --asymmetry_map False for CT"):
        InputContract(modality="CT", asymmetry_map=True)
