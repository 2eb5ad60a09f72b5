import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Invertd

from custom.networks.classifier import SASwinClassifier
from custom.networks.segmenter import SASwinUNETR
from custom.symmetry import symmetric_pair
from custom.transforms.asymmetry import FeatureAsymmetryd, feature_asymmetry
from custom.transforms.contract import InputContract


@pytest.fixture
def network(small):
    return SASwinUNETR(**small).eval()


def symmetric_volume():
    half = torch.randn(1, 1, 32, 32, 32)
    return torch.cat([half, half.flip(2)], dim=2)


@torch.no_grad()
def test_a_symmetric_volume_has_no_asymmetry_anywhere(network):
    difference = feature_asymmetry(network, symmetric_pair(symmetric_volume()))
    assert difference.shape == (1, 1, 64, 32, 32)
    assert difference.abs().max() < 1e-4


@torch.no_grad()
def test_the_map_is_largest_where_one_half_was_changed_and_at_its_mirrored_place(network):
    volume = symmetric_volume()
    volume[:, :, 6:14, 10:18, 10:18] += 4 * torch.randn(1, 1, 8, 8, 8)
    difference = feature_asymmetry(network, symmetric_pair(volume))[0, 0]
    changed, counterpart = difference[6:14, 10:18, 10:18].mean(), difference[50:58, 10:18, 10:18].mean()
    elsewhere = difference[20:28, 10:18, 10:18].mean()  # the same box in the middle of the same half
    assert min(changed, counterpart) > 1.5 * elsewhere


@pytest.mark.parametrize("symmetry", ["saca", "channel", "none"])
@torch.no_grad()
def test_every_variant_and_network_has_a_map(small, pair, symmetry):
    for kind in (SASwinUNETR, SASwinClassifier):
        assert feature_asymmetry(kind(**small, symmetry=symmetry).eval(), pair).shape == (2, 1, 64, 32, 32)


def test_the_map_comes_back_on_the_grid_of_the_file(network, write_volume, tmp_path):
    array = np.zeros((40, 30, 36), np.float32)
    array[5:-5, 5:-5, 5:-5] = 100 + 10 * np.random.default_rng(0).standard_normal((30, 20, 26))
    affine = np.array([[0, 0, -6.0, 80], [-6, 0, 0, 90], [0, 6, 0, -70], [0, 0, 0, 1]])
    path = write_volume(tmp_path / "head.nii.gz", array, affine)
    contract = InputContract(spacing=6.0, spatial_size=(64, 32, 32), align=False)
    case = contract({"image": path})
    with_map = FeatureAsymmetryd("image", network, SlidingWindowInferer((64, 32, 32)))(case)
    back = Invertd("asymmetry", contract, orig_keys="image", nearest_interp=False)(with_map)["asymmetry"]
    assert isinstance(back, MetaTensor)
    assert back.shape == (1, 40, 30, 36)
    np.testing.assert_allclose(back.affine.numpy(), affine, atol=1e-4)
    assert back.max() > 0
