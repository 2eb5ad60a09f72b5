import pytest
import torch

from custom.symmetry import mirror, split_pair, symmetric_pair
from custom.transforms.views import PrepareViews, cut_holes, hole_masks, quarter_turns, random_cuboids, random_roi

SHAPE = (12, 16, 16)


@pytest.fixture
def pairs():
    """Three symmetric pairs whose every voxel has its own positive value, `(3, 2, 12, 16, 16)`."""
    size = 3 * 12 * 16 * 16
    return symmetric_pair(torch.arange(1.0, size + 1).reshape(3, 1, *SHAPE))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_quarter_turn_takes_front_to_top_and_leaves_left_and_right():
    volume = torch.zeros(1, 1, 5, 4, 4)
    volume[0, 0, 1, 3, 0] = 1  # front, at the bottom
    turned = quarter_turns(volume, torch.tensor([1]))
    assert turned.nonzero().tolist() == [[0, 0, 1, 3, 3]]


def test_each_volume_turns_by_its_own_number_and_four_turns_are_none(pairs):
    turned = quarter_turns(pairs, torch.tensor([0, 1, 3]))
    assert torch.equal(turned[0], pairs[0])
    assert torch.equal(turned[1], pairs[1].transpose(2, 3).flip(2))
    assert torch.equal(turned[2], pairs[2].transpose(2, 3).flip(3))
    assert torch.equal(quarter_turns(turned, torch.tensor([0, 3, 1])), pairs)


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_quarter_turns_commute_with_mirroring(pairs, turn):
    turns = torch.full((3,), turn)
    assert torch.equal(quarter_turns(mirror(pairs), turns), mirror(quarter_turns(pairs, turns)))


def test_a_quarter_turn_that_would_change_the_shape_is_refused():
    with pytest.raises(ValueError, match=r"quarter turns need Y = Z, got an ROI of \(4, 6, 8\)"):
        quarter_turns(torch.zeros(1, 1, 4, 6, 8), torch.tensor([1]))


def union_by_hand(cuboids, shape):
    """Voxels of the cuboids, one by one."""
    mask = torch.zeros(len(cuboids), 1, *shape, dtype=torch.bool)
    for image, profiles in enumerate(cuboids):
        for profile in profiles:
            x, y, z = (p.nonzero().flatten().tolist() for p in profile.split(shape))
            for i in x:
                for j in y:
                    for k in z:
                        mask[image, 0, i, j, k] = True
    return mask


def test_holes_are_the_union_of_the_cuboids():
    cuboids = random_cuboids(2, (6, 5, 4), generator(), ratio=0.5, max_side=0.5, count=6)
    mask = hole_masks(cuboids, (6, 5, 4))
    assert mask.any()
    assert torch.equal(mask, union_by_hand(cuboids, (6, 5, 4)))


@pytest.mark.parametrize("ratio", [0.05, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_holes_cover_at_most_their_share_and_no_cuboid_is_longer_than_allowed(seed, ratio):
    shape = (32, 48, 48)
    cuboids = random_cuboids(4, shape, generator(seed), ratio, max_side=0.25, count=200)
    cover = hole_masks(cuboids, shape).flatten(1).float().mean(1)
    assert (cover <= ratio).all()
    assert (cover > ratio / 3).all()
    sides = torch.stack([profile.sum(-1) for profile in cuboids.split(shape, dim=-1)], -1)
    assert (sides.amax((0, 1)) <= torch.tensor([8, 12, 12])).all()


def test_holes_reach_every_voxel():
    covered = torch.zeros(1, 6, 6, 6, dtype=torch.bool)
    for seed in range(40):
        covered |= hole_masks(random_cuboids(4, (6, 6, 6), generator(seed), max_side=0.5), (6, 6, 6)).any(0)
    assert covered.all()


def test_a_hole_is_empty_or_holds_another_image_and_the_rest_is_untouched(pairs):
    images = pairs[:, :1]
    cut = cut_holes(images, random_cuboids(3, SHAPE, generator()), images.roll(1, dims=0))
    kept, emptied, filled = cut == images, cut == 0, cut == images.roll(1, dims=0)
    assert (kept | emptied | filled).all()
    assert emptied.any()
    assert filled.any()
    assert ((~kept).flatten(1).float().mean(1) <= 0.3).all()


def test_the_roi_is_taken_at_one_place_from_both_halves(pairs):
    wide = torch.cat([pairs, pairs + 0.5], dim=2)
    roi = random_roi(wide, (8, 8, 8), generator(3))
    assert roi.shape == (3, 2, 8, 8, 8)
    corner = (wide[0, 0] == roi[0, 0, 0, 0, 0]).nonzero()[0].tolist()
    x, y, z = (slice(start, start + 8) for start in corner)
    assert torch.equal(roi, wide[:, :, x, y, z])


def test_a_roi_larger_than_the_volume_takes_the_volume(pairs):
    assert torch.equal(random_roi(pairs, (64, 64, 64), generator()), pairs)


def test_two_views_come_stacked_with_holes_in_the_image_only(pairs):
    views, targets = PrepareViews()({"image": pairs, "healthy": torch.tensor([True, False, True])}, torch.device("cpu"))
    assert views.shape == (6, 2, *SHAPE)
    image, mirrored = split_pair(views)
    clean, clean_mirrored = split_pair(quarter_turns(pairs.repeat(2, 1, 1, 1, 1), targets["rotation"]))
    assert torch.equal(targets["image"], clean)
    assert torch.equal(mirrored, clean_mirrored)
    changed = (image != clean).flatten(1).float().mean(1)
    assert ((changed > 0) & (changed <= 0.3)).all()
    assert targets["healthy"].tolist() == [True, False, True, True, False, True]


def test_the_target_is_the_mirror_image_of_the_counterpart(pairs):
    views, targets = PrepareViews()({"image": pairs, "healthy": torch.ones(3)}, torch.device("cpu"))
    assert torch.equal(mirror(targets["image"]), split_pair(views)[1])


def test_the_two_views_differ(pairs):
    views, targets = PrepareViews(rotate=False)({"image": pairs, "healthy": torch.ones(3)}, torch.device("cpu"))
    assert targets["rotation"].tolist() == [0] * 6
    assert not torch.equal(views[:3], views[3:])
    assert torch.equal(targets["image"][:3], targets["image"][3:])


def test_every_turn_comes_up(pairs):
    prepare = PrepareViews()
    turns = torch.cat(
        [prepare({"image": pairs, "healthy": torch.ones(3)}, torch.device("cpu"))[1]["rotation"] for _ in range(20)]
    )
    assert turns.bincount(minlength=4).min() > 10


def test_training_views_change_and_validation_views_repeat(pairs):
    batch = {"image": pairs, "healthy": torch.ones(3)}
    fresh, fixed = PrepareViews(seed=1), PrepareViews(seed=1, repeat=True)
    device = torch.device("cpu")
    assert not torch.equal(fresh(batch, device)[0], fresh(batch, device)[0])
    first = fixed(batch, device)[0]
    assert torch.equal(fixed(batch, device)[0], first)
    assert torch.equal(PrepareViews(seed=1)(batch, device)[0], first)
    assert not torch.equal(PrepareViews(seed=2)(batch, device)[0], first)


def test_the_batch_itself_is_left_as_it_was(pairs):
    before = pairs.clone()
    PrepareViews()({"image": pairs, "healthy": torch.ones(3)}, torch.device("cpu"))
    PrepareViews(rotate=False)({"image": pairs, "healthy": torch.ones(3)}, torch.device("cpu"))
    assert torch.equal(pairs, before)


def test_a_missing_healthy_label_is_refused_where_it_is_needed(pairs):
    with pytest.raises(ValueError, match=r"needs the key 'healthy' .* or choose objective label_free"):
        PrepareViews()({"image": pairs}, torch.device("cpu"))
    assert "healthy" not in PrepareViews(needs_healthy=False)({"image": pairs}, torch.device("cpu"))[1]


def test_what_is_hidden_in_both_halves_cannot_be_read_from_the_other():
    """The same places are cut out of the counterpart, which lies as the image does; in a share of the views alone."""
    batch = {"image": symmetric_pair(1 + torch.rand(8, 1, 16, 16, 16))}
    options = {"needs_healthy": False, "rotate": False, "seed": 3}
    one, _ = PrepareViews(**options)(batch)
    both, _ = PrepareViews(hide_both=1.0, **options)(batch)
    some, _ = PrepareViews(hide_both=0.5, **options)(batch)
    image, mirrored = split_pair(both)
    assert torch.equal(image, split_pair(one)[0])
    assert torch.equal(mirrored == 0, image == 0)
    assert (image == 0).any()
    assert not (split_pair(one)[1] == 0).any()
    hidden = (split_pair(some)[1] == 0).flatten(1).any(1)
    assert 2 <= hidden.sum() <= 14
