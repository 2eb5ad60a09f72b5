import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import RandAffined

from custom.symmetry import split_pair, symmetric_pair
from custom.transforms.augmentation import DeepAugmentationd


@pytest.fixture
def case():
    """A smooth symmetric pair, and a mask: where its image is above a half."""
    axis = torch.linspace(-1, 1, 32)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    image = torch.exp(-4 * ((x - 0.3) ** 2 + y**2 + z**2))[None]
    return {"image": MetaTensor(symmetric_pair(image)), "label": MetaTensor((image > 0.5).float())}


def augmented(case, seed, only=None):
    transform = DeepAugmentationd(["image", "label"])
    if only:
        transform.steps.transforms = [step for step in transform.steps.transforms if isinstance(step, only)]
    transform.set_random_state(seed)
    return transform(case)


def test_the_mask_stays_on_the_image_it_was_drawn_on(case):
    moved = 0
    for seed in range(20):
        result = augmented(case, seed, only=RandAffined)
        image, _ = split_pair(result["image"])
        agreement = ((image > 0.5) == (result["label"] > 0.5)).float().mean()
        assert agreement > 0.99
        moved += not torch.equal(result["label"], case["label"])
    assert 2 <= moved <= 14  # one in five is turned, one in five scaled


def test_voxels_that_were_homologous_stay_so(case):
    for seed in range(20):
        result = augmented(case, seed, only=RandAffined)
        pair = MetaTensor(symmetric_pair(case["label"]))
        alone = augmented({"image": pair, "label": case["label"]}, seed, only=RandAffined)
        assert (
            torch.equal(result["label"] > 0.5, alone["image"][:1] > 0.5)
            or ((result["label"] > 0.5) == (alone["image"][:1] > 0.5)).float().mean() > 0.99
        )


def test_intensities_change_in_most_cases_and_shapes_and_mask_values_in_none(case):
    changed = 0
    for seed in range(20):
        result = augmented(case, seed)
        assert result["image"].shape == case["image"].shape
        assert set(result["label"].unique().tolist()) <= {0.0, 1.0}
        assert torch.isfinite(result["image"]).all()
        changed += not torch.equal(result["image"], case["image"])
    assert changed > 10


def test_the_same_seed_gives_the_same_result(case):
    torch.testing.assert_close(augmented(case, 3)["image"], augmented(case, 3)["image"])
    assert not torch.equal(augmented(case, 3)["image"], augmented(case, 4)["image"])
