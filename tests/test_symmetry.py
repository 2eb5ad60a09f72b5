import pytest
import torch

from custom.symmetry import LATERAL_AXIS, mirror, split_pair, symmetric_pair


@pytest.fixture(params=[4, 5])
def volume(request):
    """Every voxel has its own value; even and odd widths. `(1, X, 3, 2)`."""
    return torch.arange(float(request.param * 6)).reshape(1, request.param, 3, 2)


def test_mirroring_twice_is_the_identity(volume):
    assert torch.equal(mirror(mirror(volume)), volume)


def test_a_voxel_far_left_comes_out_far_right_and_nothing_else_moves():
    image = torch.zeros(1, 7, 5, 3)
    image[0, 0, 1, 2] = 1
    assert mirror(image).nonzero().tolist() == [[0, 6, 1, 2]]


def test_front_and_top_stay_where_they_are(volume):
    assert torch.equal(mirror(volume).sum(1), volume.sum(1))
    assert not torch.equal(mirror(volume), volume.flip(2))
    assert not torch.equal(mirror(volume), volume.flip(3))


def test_the_central_plane_of_an_odd_width_stays():
    image = torch.arange(5.0).reshape(5, 1, 1)
    assert mirror(image).flatten().tolist() == [4, 3, 2, 1, 0]


def test_a_batch_is_mirrored_like_its_volumes(volume):
    batch = torch.stack([volume, volume + 100])
    assert torch.equal(mirror(batch), torch.stack([mirror(volume), mirror(volume + 100)]))
    assert LATERAL_AXIS == 0


def test_a_pair_holds_the_channels_then_the_mirrored_channels(volume):
    image = torch.cat([volume, volume + 100])
    pair = symmetric_pair(image)
    assert pair.shape == (4, *volume.shape[1:])
    assert torch.equal(pair[:2], image)
    assert torch.equal(pair[2:], mirror(image))


def test_splitting_gives_back_what_was_paired(volume):
    for image in (volume, torch.stack([volume, volume + 100])):
        first, second = split_pair(symmetric_pair(image))
        assert torch.equal(first, image)
        assert torch.equal(second, mirror(image))


def test_the_pair_of_the_mirrored_brain_is_the_pair_with_its_halves_swapped(volume):
    image, mirrored = split_pair(symmetric_pair(volume))
    assert torch.equal(symmetric_pair(mirror(volume)), torch.cat([mirrored, image]))


def test_a_flipped_pair_is_the_pair_of_the_mirrored_brain(volume):
    assert torch.equal(symmetric_pair(volume).flip(1), symmetric_pair(mirror(volume)))


@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_crop_of_the_pair_is_the_roi_and_the_mirrored_contralateral_roi(start):
    volume = torch.arange(8.0 * 3 * 3).reshape(1, 8, 3, 3)
    roi, counterpart = split_pair(symmetric_pair(volume)[:, start : start + 3, :2])
    contralateral = volume[:, 8 - start - 3 : 8 - start, :2]
    assert torch.equal(roi, volume[:, start : start + 3, :2])
    assert torch.equal(counterpart, mirror(contralateral))


def test_an_odd_number_of_channels_is_no_pair():
    with pytest.raises(ValueError, match=r"even number of channels \(C and C mirrored\), got 3"):
        split_pair(torch.zeros(3, 4, 4, 4))
