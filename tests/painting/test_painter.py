import nibabel as nib
import numpy as np
import pytest
import torch

from custom.losses import UNKNOWN
from custom.painting import Anatomies, PaintBrain, Painter, placeholders
from custom.painting.anatomies import CHANNELS
from custom.painting.lesions import Lesions, pushed, random_lesions
from custom.painting.shapes import LARGEST_SHIFT, grid_points, places
from custom.support.draws import Draws
from custom.support.errors import UserError
from custom.symmetry import mirror, split_pair
from custom.transforms.views import PrepareViews

SIZE, SPACING = (64, 64, 32), (3.0, 3.0, 5.0)


@pytest.fixture(scope="module")
def painter(tissues):
    return Painter(str(tissues), spacing=SPACING, spatial_size=SIZE)


def draws(seed=0, rows=1, **options):
    return Draws(torch.Generator().manual_seed(seed), rows, **options)


@pytest.fixture(scope="module")
def painting(painter):
    return painter(draws(seed=3, rows=6), scanners=2)


def test_a_missing_or_mixed_folder_of_tissue_maps_is_refused_with_what_to_do(tmp_path, tissues):
    with pytest.raises(UserError, match=r"no tissue maps .* sa-swin phantom tissues --output FOLDER"):
        Anatomies(tmp_path)
    (tmp_path / "broken_tissues.nii.gz").write_bytes(b"no image")
    with pytest.raises(UserError, match="a tissue map cannot be read"):
        Anatomies(tmp_path)
    (tmp_path / "broken_tissues.nii.gz").write_bytes((tissues / "ball_tissues.nii.gz").read_bytes())
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, len(CHANNELS)), np.uint8), np.eye(4)), tmp_path / "b_tissues.nii.gz")
    with pytest.raises(UserError, match="of one shape and spacing"):
        Anatomies(tmp_path)


def test_the_centre_of_a_map_is_the_origin_and_its_voxels_are_read_where_they_lie(tissues):
    anatomies = Anatomies(tissues)
    points = torch.tensor([[0.0, 0, 0], [50, 0, 0], [0, -62, 0], [0, 0, 69], [0, 76, 0], [0, 0, 90]])
    found = anatomies.sample([0], points.view(1, 6, 1, 1, 3))[0, :, :, 0, 0]
    expected = ["wm", "gm", "csf", "bone", "fat"]
    assert [CHANNELS[int(column[:-1].argmax())] for column in found.T[:5]] == expected
    assert found[:, 5].sum() == 0  # outside the map


def test_the_same_seed_paints_the_same_brains_and_another_seed_others(painter, painting):
    again = painter(draws(seed=3, rows=6), scanners=2)
    assert all(torch.equal(one, other) for one, other in zip(again.pairs, painting.pairs, strict=True))
    assert torch.equal(again.labels, painting.labels)
    assert not torch.equal(painter(draws(seed=4, rows=6)).pairs[0], painting.pairs[0])


def test_processes_paint_together_what_one_paints_alone(painter, painting):
    """Each draws the numbers of the whole batch, and keeps its own rows."""
    for rank in range(2):
        own = painter(draws(seed=3, rows=6, own=lambda rows, rank=rank: rows[rank::2]), scanners=2)
        torch.testing.assert_close(own.pairs[1], painting.pairs[1][rank::2], atol=1e-3, rtol=0)
        assert torch.equal(own.labels, painting.labels[rank::2])


def test_noise_is_white_and_another_in_each_row():
    noise = draws(seed=3, rows=3).noise(2, 40, 40)
    assert noise.shape == (3, 2, 40, 40)
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05
    assert float(torch.corrcoef(noise.flatten(1)).triu(1).abs().max()) < 0.05
    assert draws(rows=3, own=lambda rows: rows[:0]).noise(2, 4).shape == (0, 2, 4)


def test_a_pair_is_the_image_with_its_mirror_image_in_z_scores(painting):
    for pair in painting.pairs:
        image, mirrored = split_pair(pair)
        assert torch.equal(mirrored, mirror(image))
        assert pair.isfinite().all()
        assert -5 <= pair.min() < -0.5 < 0.5 < pair.max() <= 5


def test_two_scanners_see_one_head_in_two_contrasts(painting):
    one, other = painting.pairs
    correlations = [float(np.corrcoef(a[0].flatten(), b[0].flatten())[0, 1]) for a, b in zip(one, other, strict=True)]
    assert max(correlations) < 0.999
    assert np.median(correlations) > 0.3  # the head's outline at least


def test_the_labels_agree_with_each_other(painting):
    tissue, lesion, alike = painting.labels.split(1, 1)
    assert torch.equal(painting.healthy, ~lesion.bool().flatten(1).any(1))
    assert 0 < painting.healthy.sum() < len(painting.healthy)
    assert (tissue[lesion.bool()] == UNKNOWN).all()
    assert (tissue[~lesion.bool()] < 5).all()
    assert not (alike.bool() & (lesion.bool() | mirror(lesion).bool())).any()
    assert torch.equal(alike[painting.healthy].bool(), tissue[painting.healthy] != 0)


def test_heads_come_with_and_without_lesions_on_either_side_on_both_and_bare():
    """Over 300 draws: the shares within three standard deviations, both sides alike."""
    points = grid_points(SIZE, SPACING, torch.device("cpu")).expand(300, *SIZE, 3)[:, ::4, ::4, ::4]
    lesions = random_lesions(draws(seed=1, rows=300), points, (points.norm(dim=-1) < 60).float())
    assert lesions.healthy.float().mean().item() == pytest.approx(0.25, abs=0.075)
    one_sided = ~lesions.healthy & ~lesions.twin & (lesions.centres[:, 0, 0].abs() > 4)
    assert one_sided.float().mean().item() == pytest.approx(0.6, abs=0.085)
    right = (lesions.centres[one_sided][:, 0, 0] > 0).float().mean().item()
    assert right == pytest.approx(0.5, abs=0.12)
    assert lesions.twin.float().mean().item() == pytest.approx(0.1, abs=0.055)
    inside = lesions.centres[~lesions.healthy].norm(dim=-1)
    assert (inside < 60).all()


def lesion(centre, radius, twin=False, push=0.0):
    centres, radii = torch.zeros(1, 3, 3), torch.zeros(1, 3)
    centres[0, 0], radii[0, 0] = torch.tensor(centre), radius
    return Lesions(centres, radii, torch.eye(3).expand(1, 3, 3, 3), torch.tensor([twin]), torch.tensor([push]))


def test_a_lesion_has_the_volume_and_the_place_it_was_given():
    voxels = grid_points(SIZE, SPACING, torch.device("cpu"))[None]
    made = lesion((30.0, -12.0, 10.0), 20.0)
    fraction, depth = made.drawn(voxels, torch.zeros(1, 1, *SIZE))
    assert fraction.sum() * 45 == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.05)
    centre = (fraction[0, 0, ..., None] * voxels[0]).sum((0, 1, 2)) / fraction.sum()
    torch.testing.assert_close(centre, torch.tensor([30.0, -12.0, 10.0]), atol=0.5, rtol=0)
    assert depth.max() == pytest.approx(0.85, abs=0.1)
    assert (depth[fraction < 0.4] == 0).all()


def test_a_twin_is_the_mirror_image_and_a_one_sided_lesion_is_not():
    voxels, texture = grid_points(SIZE, SPACING, torch.device("cpu"))[None], torch.zeros(1, 1, *SIZE)
    both, _ = lesion((30.0, 0.0, 0.0), 15.0, twin=True).drawn(voxels, texture)
    torch.testing.assert_close(both, mirror(both))
    single, _ = lesion((30.0, 0.0, 0.0), 15.0).drawn(voxels, texture)
    assert single[:, :, :32].max() < 0.01 < single[:, :, 32:].max()
    assert both.sum() == pytest.approx(2 * single.sum().item(), rel=1e-4)


def test_mass_effect_moves_what_is_beside_a_lesion_away_from_it_and_leaves_the_rest():
    """Tissue that lies 15 mm from the centre without is read further out than its place: it was pushed there."""
    voxels = grid_points(SIZE, SPACING, torch.device("cpu"))[None]
    made, centre = lesion((30.0, 0.0, 0.0), 15.0, push=0.5), torch.tensor([30.0, 0.0, 0.0])
    where = pushed(made, voxels, voxels)
    near = (voxels - centre).norm(dim=-1)
    read = (where - centre).norm(dim=-1)
    assert (read[(near > 8) & (near < 25)] < 0.93 * near[(near > 8) & (near < 25)]).all()
    torch.testing.assert_close(read[near > 80], near[near > 80], atol=0.05, rtol=0)
    twin = pushed(lesion((30.0, 0.0, 0.0), 15.0, twin=True, push=0.5), voxels, voxels)
    torch.testing.assert_close(mirror(twin.movedim(-1, 1)).movedim(1, -1) * torch.tensor([-1.0, 1, 1]), twin)


def test_an_aligned_head_is_off_by_a_little_only():
    points = places(draws(seed=2, rows=20), (8, 8, 8), (1.0, 1.0, 1.0))
    shift = points.mean((1, 2, 3))
    assert (shift[:, 0].abs() < LARGEST_SHIFT[0] + 15).all()
    assert shift.abs().median() > 1


def test_ct_is_windowed_and_channels_are_contrasts_of_one_head(tissues):
    ct = Painter(str(tissues), modality="CT", spacing=SPACING, spatial_size=SIZE)(draws(rows=2))
    assert ct.pairs[0].min() == 0
    assert ct.pairs[0].max() == 1
    two = Painter(str(tissues), channels=2, spacing=SPACING, spatial_size=SIZE)(draws(rows=1))
    assert two.pairs[0].shape == (1, 4, *SIZE)
    assert not torch.equal(two.pairs[0][:, 0], two.pairs[0][:, 1])


def views(painter):
    options = {"rotate": False, "hole_ratio": 0.0, "painter": painter, "roi_size": (32, 64, 32)}
    return PrepareViews(needs_healthy=False, **options)


def test_painted_views_are_of_two_scanners_with_the_labels_of_their_places(painter):
    batch = {"image": torch.stack([case["image"] for case in placeholders(3, 1)])}
    inputs, targets = views(painter)(batch)
    assert inputs.shape == (6, 2, 32, 64, 32)
    for name in ("tissue", "lesion", "alike", "healthy"):
        one, other = targets[name].chunk(2)
        assert torch.equal(one, other)
    assert not torch.equal(*targets["image"].chunk(2))
    head = targets["tissue"] == 3  # white matter and air differ on most contrasts: image and labels lie alike
    gap = [abs(float(i[h].mean() - i[t == 0].mean())) for i, h, t in zip(targets["image"], head, targets["tissue"])]  # noqa: B905
    assert np.median(gap) > 1


def test_a_share_of_a_batch_is_painted_and_the_rest_stays_what_it_was(tissues):
    real = torch.full((8, 2, 32, 64, 32), 7.0)
    batch = {"image": real, "healthy": torch.zeros(8, dtype=torch.bool)}
    inputs, targets = views(Painter(str(tissues), spacing=SPACING, spatial_size=SIZE, share=0.5))(batch)
    untouched = (inputs == 7).flatten(1).all(1)
    assert 1 <= untouched[:8].sum() <= 7
    assert torch.equal(untouched[:8], untouched[8:])
    assert (targets["tissue"][untouched] == UNKNOWN).all()
    assert (targets["lesion"][untouched] == UNKNOWN).all()
    assert not targets["alike"][untouched].any()
    assert not targets["healthy"][untouched].any()
    assert targets["lesion"][~untouched].max() == 1


def test_a_share_or_counterpart_that_cannot_be_painted_is_refused(tissues):
    for share in (0, 1.5, -0.5):
        with pytest.raises(UserError, match=f"0 to 1; got {share}"):
            Painter(str(tissues), share=share)
    with pytest.raises(UserError, match="paired with their mirror images; got --counterpart homologous"):
        Painter(str(tissues), counterpart="homologous")


def test_a_validation_brain_is_a_function_of_its_number(painter):
    first, second = placeholders(2, 1)
    paint = PaintBrain(painter, seed=5)
    one, again, other = paint(first), paint(dict(first)), paint(second)
    assert torch.equal(one["image"], again["image"])
    assert not torch.equal(one["image"], other["image"])
    assert not torch.equal(one["image"], one["rescan"])
    assert one["labels"].shape == (3, *SIZE)
    assert one["subject"] == "painted-0"
