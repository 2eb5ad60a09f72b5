from itertools import product

import pytest
import torch
import torch.nn.functional as F
from asymmetric_heads import SIZE, SPACING, head, radius
from scipy import ndimage

from custom.symmetry import mirror
from custom.transforms.asymmetry_map import (
    asymmetry_map,
    brain,
    convolved,
    in_quartiles,
    offsets,
    smooth,
    strangeness,
    texture,
    tolerant_difference,
)


def test_the_offsets_within_a_distance_are_those_of_a_ball_in_mm():
    assert offsets(3.0, SPACING) == [o for o in product((-1, 0, 1), repeat=3) if sum(map(abs, o)) <= 1]
    assert offsets(3.0, (3.0, 3.0, 6.0)) == [(-1, 0, 0), (0, -1, 0), (0, 0, 0), (0, 1, 0), (1, 0, 0)]


def test_the_difference_is_that_to_the_best_of_the_patches_one_by_one():
    image, other = torch.randn(2, 1, 2, 6, 5, 7)
    places = offsets(4.5, SPACING)
    found = tolerant_difference(image, other, places)[0, 0]
    outer = F.pad(other, [1] * 6, mode="replicate")  # beyond the border the counterpart's edge is repeated
    for x, y, z in product(range(2, 4), range(2, 3), range(2, 5)):
        patch = image[0, :, x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2]
        near = [(x + a, y + b, z + c) for a, b, c in places]
        patches = [outer[0, :, a : a + 3, b : b + 3, c : c + 3] for a, b, c in near]
        by_hand = min((patch - other_patch).square().mean().sqrt() for other_patch in patches)
        torch.testing.assert_close(found[x, y, z], by_hand)


@pytest.mark.parametrize("step", [(1, 0, 0), (0, -1, 1)])
def test_what_lies_a_voxel_off_is_the_same(step):
    image = torch.randn(1, 1, 12, 12, 12)
    moved = image.roll(step, (2, 3, 4))
    inner = (..., *[slice(3, -3)] * 3)
    assert tolerant_difference(image, moved, [(0, 0, 0)])[inner].min() > 0.5
    assert tolerant_difference(image, moved, offsets(4.5, SPACING))[inner].abs().max() < 1e-3


def test_texture_is_the_standard_deviation_of_the_patch():
    volume = torch.randn(1, 2, 5, 5, 5) + 1
    patches = volume[0, :, 1:4, 1:4, 1:4].flatten(1)
    by_hand = patches.var(1, correction=0).mean().sqrt()
    torch.testing.assert_close(texture(volume)[0, 0, 2, 2, 2], by_hand)


def test_on_a_gpu_the_gaussian_filter_is_scipys():
    values, widths = torch.randn(2, 1, 20, 18, 16), [2.5, 1.5, 0.8]
    expected = ndimage.gaussian_filter(values.numpy(), (0, 0, *widths), mode="constant")
    torch.testing.assert_close(convolved(values, widths), torch.from_numpy(expected), atol=1e-5, rtol=1e-4)


def test_smoothing_takes_nothing_from_outside():
    inside = radius()[None, None] < 50
    volume = torch.where(inside, 2.0, 1e4)
    torch.testing.assert_close(smooth(volume, inside, 7.5, SPACING), torch.where(inside, 2.0, 0.0))


@pytest.mark.parametrize("lesion", [0.0, -3.0, 3.0])
def test_the_brain_ends_at_the_skull(lesion):
    inside = brain(head(lesion=lesion), SPACING)[0, 0]
    truth = radius() < 54
    assert torch.equal(inside, mirror(inside))
    assert 2 * (inside & truth).sum() / (inside.sum() + truth.sum()) > 0.97


def test_the_brain_of_what_has_none_is_empty():
    assert not brain(torch.zeros(1, 1, 8, 8, 8), SPACING).any()
    found = asymmetry_map(torch.zeros(1, 1, 8, 8, 8), SPACING)
    assert not found.difference.any()
    assert not found.level.any()


def test_where_the_other_side_is_out_of_view_there_is_no_map():
    image = head()
    image[:, :, :12] = image.amin()
    assert not asymmetry_map(image, SPACING).difference[:, :, -11:].any()


@pytest.mark.parametrize("lesion", [-1.5, 1.5])
@pytest.mark.parametrize("side", [1, -1])
def test_the_peak_is_in_the_lesion_and_its_side_is_told(lesion, side):
    image = head(lesion=lesion, side=side)
    found = asymmetry_map(image, SPACING)
    ball, twin = (radius((30.0 * s, 0.0, 0.0)) < 18 for s in (side, -side))
    assert (ball | twin).flatten()[found.difference.argmax()]
    side = strangeness(found.level, found.inside, SPACING)[0, 0]
    assert side[ball].min() > 0
    assert side[twin].max() < 0


def test_a_symmetric_head_has_no_asymmetry_and_no_side():
    image = head(noise=0.0)
    found = asymmetry_map(image, SPACING)
    assert found.difference.max() < 1e-3
    assert strangeness(found.level, found.inside, SPACING).abs().max() < 1e-4


def test_the_map_of_a_mirror_image_is_the_mirror_image_of_the_map():
    image = head(lesion=2.0)
    one, other = asymmetry_map(image, SPACING), asymmetry_map(mirror(image), SPACING)
    torch.testing.assert_close(other.difference, mirror(one.difference))
    torch.testing.assert_close(other.level, mirror(one.level), atol=1e-4, rtol=1e-4)


def test_the_map_does_not_depend_on_the_scale_of_intensities():
    image = head(lesion=2.0)
    one, other = asymmetry_map(image, SPACING), asymmetry_map(5 * image - 7, SPACING)
    torch.testing.assert_close(other.difference, one.difference, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(other.level, one.level, atol=1e-3, rtol=1e-3)


def test_a_level_is_counted_in_quartiles_of_the_inside():
    image = torch.tensor([0.0, 1, 2, 3, 4, 100, -100]).reshape(1, 1, 7, 1, 1)
    found = in_quartiles(image, image.abs() < 50)
    assert found.flatten()[:5].tolist() == [-1, -0.5, 0, 0.5, 1]


def test_the_strange_side_is_the_one_that_is_not_as_usual():
    level = torch.zeros(1, 1, *SIZE)
    right = radius((30.0, 0.0, 0.0))[None, None] < 15
    inside = torch.ones_like(right)
    found = strangeness(level + 2.0 * right, inside, SPACING)
    usual = strangeness(level, inside, SPACING, usual=2.0 * mirror(right), spread=0.5)
    assert found[right].min() > 0
    torch.testing.assert_close(usual, -2 * found)
    torch.testing.assert_close(mirror(found), -found)


def test_another_counterpart_takes_the_place_of_the_mirror_image():
    image = head(lesion=2.0)
    assert asymmetry_map(image, SPACING, counterpart=image).difference.max() < 1e-3
