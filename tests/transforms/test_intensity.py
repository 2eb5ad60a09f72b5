import pytest
import torch

from custom.symmetry import mirror
from custom.transforms.intensity import standardize_mr, window_ct
from custom.volumes.background import background_level


@pytest.fixture
def head():
    """Half of the volume is background at 0; the head in it spans 50 to 150. `(1, 20, 20, 20)`."""
    volume = torch.zeros(1, 20, 20, 20)
    volume[:, 5:15] = 50 + 100 * torch.rand(10, 20, 20)
    return volume


def test_mr_is_the_z_score_of_the_head(head):
    out = standardize_mr(head)
    low, high = torch.quantile(head.flatten(), torch.tensor([0.02, 0.995])).tolist()
    clipped = head.clamp(low, high)
    inside = clipped[clipped > clipped.mean()]
    torch.testing.assert_close(out, (head.clamp_min(low) - inside.mean()) / inside.std())
    assert out[:, 5:15].mean().abs() < 0.6
    assert out[:, :5].unique().numel() == 1
    assert out[:, 0, 0, 0] < out[:, 5:15].min()


def test_a_noisy_background_is_no_head(head):
    noisy = head + (head == 0) * 10 * torch.rand(head.shape)
    out = standardize_mr(noisy)
    assert out[:, 5:15].mean().abs() < 0.1
    assert out[:, 5:15].std() == pytest.approx(1, abs=0.1)
    assert out[:, :5].max() < out[:, 5:15].min()


@pytest.mark.parametrize(("scale", "offset"), [(1000, 0), (0.01, -3.6), (1, -1024)])
def test_neither_units_nor_the_background_value_of_the_file_matter(head, scale, offset):
    torch.testing.assert_close(standardize_mr(head * scale + offset), standardize_mr(head), atol=1e-3, rtol=1e-3)


def test_each_channel_is_standardized_by_itself(head):
    other = head.square()
    both = standardize_mr(torch.cat([head, other]))
    torch.testing.assert_close(both, torch.cat([standardize_mr(head), standardize_mr(other)]))


def test_a_bright_spot_does_not_dim_the_rest(head):
    spotted = head.clone()
    spotted[0, 10, 10, 10] = 1e6
    torch.testing.assert_close(standardize_mr(spotted)[:, :10], standardize_mr(head)[:, :10], atol=0.02, rtol=0.02)


def test_a_small_bright_lesion_keeps_its_contrast(head):
    lesion = head.clone()
    lesion[0, 8:10, 4:6, 4:6] = 250  # 8 of 8,000 voxels, at twice the brightest of the head
    mean, std = 100, 100 / 12**0.5  # of a uniform distribution from 50 to 150
    assert standardize_mr(lesion)[0, 8, 4, 4] == pytest.approx((250 - mean) / std, rel=0.1)


def test_what_is_far_too_bright_is_clipped(head):
    head[0, 10, 10, 10] = 1e6
    assert standardize_mr(head).max() == 5


def test_a_symmetric_volume_stays_symmetric(head):
    symmetric = head + mirror(head)
    out = standardize_mr(symmetric)
    assert torch.equal(out, mirror(out))


@pytest.mark.parametrize("value", [0.0, 7.5])
def test_a_constant_channel_is_refused(head, value):
    with pytest.raises(ValueError, match=rf"channel 1 of the image is constant \({value:g}\)"):
        standardize_mr(torch.cat([head, torch.full_like(head, value)]))


def test_a_brain_that_was_normalised_about_its_background_is_as_before_it_was(head):
    brain = head > 0
    normalised = ((head - head[brain].mean()) / head[brain].std()).where(brain, 0)
    out, expected = standardize_mr(normalised), standardize_mr(head)
    torch.testing.assert_close(out[brain], expected[brain], atol=0.05, rtol=0)
    assert out[~brain].unique().numel() == 1
    assert out[~brain].max() < out[brain].min()
    assert background_level(normalised) == 0


@pytest.mark.parametrize("ringing", [0.0, -0.5, -4.0])
def test_undershoots_about_a_background_of_zero_do_not_move_it(head, ringing):
    head[:, 0, 5:] = 0
    head[:, 4] = ringing  # 5 % of the volume, by interpolation
    assert background_level(head) == ringing


def test_the_air_of_a_ct_is_its_background_whatever_is_filled_in_around_it():
    ct = torch.zeros(20, 20, 20)
    ct[:, :10] = -1000
    ct[8:12, 4:8] = 40
    assert background_level(ct) == -1000


def test_the_background_level_is_that_of_the_air():
    volume = torch.full((10, 10, 10), -1024.0)
    volume[3:7, 3:7, 3:7] = 40.0
    assert background_level(volume) == -1024


def test_a_volume_beyond_torchs_limit_for_quantiles_has_a_background_level():
    assert background_level(torch.zeros(260, 256, 256)) == 0


def test_ct_maps_its_window_to_zero_and_one_and_clips_the_rest():
    hounsfield = torch.tensor([-1000.0, -20, 40, 100, 1500]).reshape(1, 5, 1, 1)
    assert window_ct(hounsfield).flatten().tolist() == [0, 0, 0.5, 1, 1]
    wide = window_ct(hounsfield, (-1000, 1000)).flatten()
    torch.testing.assert_close(wide, torch.tensor([0, 0.49, 0.52, 0.55, 1]))


def test_an_empty_window_is_refused():
    with pytest.raises(ValueError, match=r"must be \(low, high\) in HU, got \(100, -20\)"):
        window_ct(torch.tensor([-1000.0]), (100, -20))


def test_what_cannot_be_hounsfield_units_is_refused():
    with pytest.raises(ValueError, match="at least 40 HU, this one 4; rescale it to HU, or use modality MR"):
        window_ct(torch.tensor([-1.5, 2.5]))


def test_a_brain_without_its_skull_is_a_ct_too():
    assert window_ct(torch.tensor([0.0, 80.0]), (0, 100)).tolist() == pytest.approx([0, 0.8])
