import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import RandAffined

from custom.symmetry import mirror, split_pair, symmetric_pair
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
        for steps in (transform.poses, transform.intensities):
            steps.transforms = [step for step in steps.transforms if isinstance(step, only)]
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
    pair = MetaTensor(symmetric_pair(case["label"]))
    for seed in range(20):
        own, other = (
            augmented({"image": pair, "label": label}, seed, only=RandAffined)
            for label in (case["label"], mirror(case["label"]))
        )
        for half, moved in zip(split_pair(own["image"]), (own["label"], other["label"]), strict=True):
            assert ((moved > 0.5) == (half > 0.5)).float().mean() > 0.99


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


def test_turns_and_changes_of_intensity_are_drawn_apart():
    drawn = [DeepAugmentationd("image").set_random_state(seed) for seed in range(400)]
    turned, noisy = (
        torch.tensor([step.R.rand() < 0.2 for step in steps])
        for steps in ([t.poses.transforms[0] for t in drawn], [t.intensities.transforms[0] for t in drawn])
    )
    assert 50 < turned.sum() < 110
    assert 50 < noisy.sum() < 110
    assert 4 < (turned & noisy).sum() < 32  # 16 by chance; were they drawn as one, as many as are turned


def test_an_asymmetry_map_is_turned_with_the_image_and_keeps_its_units(case):
    image, mirrored = split_pair(case["image"])
    pair = MetaTensor(torch.cat([image, 10 * image, mirrored, 10 * mirrored]))
    transform, turned, changed = DeepAugmentationd(["image", "label"], asymmetry_map=True), 0, 0
    for seed in range(30):
        transform.set_random_state(seed)
        seen = transform({"image": pair, "label": case["label"]})["image"]
        transform.set_random_state(seed)
        posed = transform.poses({"image": pair, "label": case["label"]})["image"]
        torch.testing.assert_close(seen[[1, 3]], posed[[1, 3]])
        turned += not torch.equal(posed, pair)
        changed += not torch.equal(seen[[0, 2]], posed[[0, 2]])
    assert turned > 3
    assert changed > 10
