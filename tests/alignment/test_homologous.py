"""The homologous counterpart: found where two halves differ in shape, not where one of them is ill."""

import pytest
import torch

from custom.alignment.fields import displaced_mirror, exponential, jacobian_determinants, resized, round_trip
from custom.alignment.homologous import homologous_counterpart, homologous_field
from custom.alignment.trust import CounterpartQuality, distrust_counterpart
from custom.symmetry import mirror

SPACING = (2.0, 2.0, 2.0)
STEP = torch.tensor(SPACING)
SIZE = (48, 48, 40)
GOOD = {"mirror_similarity": 0.7, "similarity": 0.85, "trusted": 0.95, "largest_mm": 8.0, "smallest_jacobian": 0.4}


def smooth_noise(channels: int, coarse: int) -> torch.Tensor:
    """Random and smooth, about unit variance: `(1, C, *SIZE)`."""
    noise = resized(torch.randn(1, channels, *(n // coarse for n in SIZE)), SIZE)
    return noise / noise.std()


def inside(margin: int) -> torch.Tensor:
    """An ellipsoid that ends `margin` voxels before the array does."""
    axes = [(torch.arange(n) - (n - 1) / 2) / (n / 2 - margin) for n in SIZE]
    return sum(a**2 for a in torch.meshgrid(*axes, indexing="ij")) < 1


@pytest.fixture
def symmetric() -> torch.Tensor:
    """A textured ellipsoid that equals its mirror image; its outline is no stronger than its texture."""
    noise = 30 * smooth_noise(1, 6)
    return torch.where(inside(4), noise + mirror(noise), 0.0)


@pytest.fixture
def velocity() -> torch.Tensor:
    """A smooth antisymmetric velocity of some 1 mm: x alike on both sides, y and z opposite."""
    sign = torch.tensor([1.0, -1, -1]).reshape(3, 1, 1, 1)
    noise = smooth_noise(3, 16)
    return (noise + mirror(noise) * sign) * 0.5 * resized(inside(8)[None, None].float(), SIZE)


@pytest.fixture
def bent(symmetric, velocity) -> torch.Tensor:
    """The symmetric head pushed along `velocity`: bending it by exp(velocity) makes it symmetric again."""
    return displaced_mirror(mirror(symmetric), exponential(-velocity, STEP), SPACING)


def test_a_symmetric_head_keeps_the_mirror_image(symmetric):
    counterpart, quality = homologous_counterpart(symmetric, SPACING)
    torch.testing.assert_close(counterpart, mirror(symmetric), atol=0.05, rtol=0)
    assert quality[0].largest_mm < 0.01
    assert quality[0].mirror_similarity == pytest.approx(1, abs=1e-4)


def test_a_known_bending_is_found(bent, velocity):
    field, quality = homologous_field(bent, SPACING)
    truth, head = exponential(-2 * velocity, STEP), inside(8)
    error = (field - truth).norm(dim=1)[0, head].mean()
    assert error < 0.4 * truth.norm(dim=1)[0, head].mean()
    assert 1 - quality[0].similarity < (1 - quality[0].mirror_similarity) / 5


def test_the_counterpart_is_nearer_to_the_head_than_the_mirror_image(bent):
    counterpart, _ = homologous_counterpart(bent, SPACING)
    head = inside(6)
    assert (counterpart - bent)[0, 0, head].std() < 0.6 * (mirror(bent) - bent)[0, 0, head].std()


def test_the_counterpart_of_the_counterpart_is_the_place_itself_and_nothing_folds(bent):
    field, quality = homologous_field(bent, SPACING)
    assert round_trip(field, STEP).norm(dim=1)[0, inside(6)].max() < 0.1
    assert jacobian_determinants(field, STEP).min() > 0
    assert quality[0].smallest_jacobian > 0


def test_round_trip_of_a_shift_along_the_lateral_axis_is_zero_and_of_one_along_the_others_is_not():
    shift = torch.zeros(1, 3, 8, 8, 8)
    shift[:, 0] = 2.0  # M(x + t): there and back
    assert round_trip(shift, STEP).abs().max() < 1e-6
    shift = shift.roll(1, 1)
    torch.testing.assert_close(round_trip(shift, STEP)[0, 1], torch.full((8, 8, 8), 4.0))


def test_a_lesion_stays_one_sided(bent):
    axes = torch.meshgrid(*(torch.arange(n) for n in SIZE), indexing="ij")
    lesion = sum((a - c) ** 2 for a, c in zip(axes, (33, 24, 20), strict=True)) < 5**2  # 10 mm radius, 4 ml
    ill = torch.where(lesion, bent - 100, bent)
    signal = [
        (ill - other)[0, 0, lesion].abs().mean() for other in (homologous_counterpart(ill, SPACING)[0], mirror(ill))
    ]
    assert signal[0] > 0.95 * signal[1]


def test_contrast_and_sign_do_not_matter(bent):
    field, _ = homologous_field(bent, SPACING)
    other, _ = homologous_field(1000 - 5 * bent, SPACING)
    torch.testing.assert_close(other, field, atol=0.05, rtol=0)


def test_the_mirrored_head_has_the_mirrored_field(bent):
    field, _ = homologous_field(bent, SPACING)
    other, _ = homologous_field(mirror(bent), SPACING)
    expected = mirror(field) * torch.tensor([-1.0, 1, 1]).reshape(3, 1, 1, 1)
    torch.testing.assert_close(other, expected, atol=0.05, rtol=0)


def test_a_batch_is_its_volumes_one_by_one(bent, symmetric):
    both, quality = homologous_field(torch.cat([bent, symmetric]), SPACING)
    torch.testing.assert_close(both[:1], homologous_field(bent, SPACING)[0], atol=1e-3, rtol=0)
    assert len(quality) == 2
    assert both[1].abs().max() < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_unrelated_sides_get_the_mirror_image(seed):
    torch.manual_seed(seed)
    chaos = torch.where(inside(4), 30 * smooth_noise(1, 4), 0.0)
    counterpart, quality = homologous_counterpart(chaos, SPACING)
    assert distrust_counterpart(quality[0]).startswith("the two sides stay unlike (similarity 0.")
    torch.testing.assert_close(counterpart, mirror(chaos), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"similarity": 0.6}, r"matches less \(similarity 0.60\)"),
        ({"similarity": 0.78}, r"stay unlike \(similarity 0.78, at least 0.8 needed\)"),
        ({"trusted": 0.31}, "only 31%"),
        ({"largest_mm": 31.0}, "move by 31 mm"),
        ({"smallest_jacobian": 0.01}, "nearly folds"),
    ],
)
def test_distrust_names_the_figure(change, words):
    assert distrust_counterpart(CounterpartQuality(**GOOD)) is None
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(distrust_counterpart(CounterpartQuality(**GOOD | change)))


def test_labels_move_by_the_nearest():
    label = torch.zeros(1, 1, 8, 8, 8)
    label[..., 1, 4, 4] = 7
    field = torch.zeros(1, 3, 8, 8, 8)
    field[:, 1] = 2.0
    moved = displaced_mirror(label, field, SPACING, mode="nearest")
    assert moved.nonzero().tolist() == [[0, 0, 6, 3, 4]]  # mirrored, and found one voxel further front
    assert moved.max() == 7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_field(bent):
    field, _ = homologous_field(bent, SPACING)
    torch.testing.assert_close(homologous_field(bent.cuda(), SPACING)[0].cpu(), field, atol=0.1, rtol=0)
