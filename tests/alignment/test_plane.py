"""The midsagittal plane: recovered in any pose, file and contrast, or refused; and the grid that makes it central."""

import math

import nibabel as nib
import numpy as np
import pytest
import torch
from nilearn.datasets import load_mni152_template
from scipy import ndimage

from custom.alignment.head import head_volume, otsu, resample
from custom.alignment.plane import MidsagittalPlane, aligned_affine, distrust, estimate_plane, set_plane
from custom.alignment.sampling import lattice
from custom.alignment.search import frame

IDENTITY = torch.eye(4, dtype=torch.float64)


@pytest.fixture(scope="module")
def brain():
    """The ICBM template at 2 mm, its left half mirrored: exactly symmetric about world x = 0. `(100, 116, 94)`."""
    template = load_mni152_template(resolution=2)
    grid = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    grid[:3, 3] = torch.tensor([-99.0, -132, -70])
    image = torch.from_numpy(template.get_fdata(dtype=np.float32)) * 1000
    half = resample(image, torch.from_numpy(template.affine), grid, (50, 116, 94), padding_mode="zeros")[0]
    return torch.cat([half, half.flip(0)]), grid


def turned(yaw: float, roll: float, pitch: float = 0.0, shift: tuple[float, float, float] = (0, 0, 0)) -> torch.Tensor:
    """A rigid motion of the world: degrees about z, y and x, then mm."""
    motion = IDENTITY.clone()
    for angle, (a, b) in ((pitch, (1, 2)), (roll, (2, 0)), (yaw, (0, 1))):
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turn = IDENTITY.clone()
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
        motion = turn @ motion
    motion[:3, 3] = torch.tensor(shift)
    return motion


def errors(plane: MidsagittalPlane, motion: torch.Tensor) -> tuple[float, float]:
    """Degrees and mm between a plane and the moved plane x = 0, at the moved origin."""
    normal = torch.tensor(plane.normal, dtype=torch.float64)
    cosine = (normal @ motion[:3, 0]).clamp(-1, 1)
    return math.degrees(math.acos(cosine)), abs((normal @ motion[:3, 3]).item() - plane.offset)


def test_a_symmetric_volume_needs_no_alignment(brain):
    image, affine = brain
    angle, offset = errors(estimate_plane(image, affine), IDENTITY)
    assert angle < 0.1
    assert offset < 0.1


@pytest.mark.parametrize("pose", [(25, -25, 5, (25, 3, -4)), (-14, 8, -10, (-160, 20, 300)), (3, 22, 0, (0, 0, 0))])
def test_a_known_pose_is_recovered(brain, pose):
    image, affine = brain
    motion = turned(*pose)
    posed = motion.clone()
    posed[:3, 3] = torch.tensor([-90.0, -108, -90])
    grid = IDENTITY.clone()
    grid[:3, 3] = motion[:3, 3] - 100
    scan, _ = resample(image, motion @ affine, grid, (200, 200, 200), padding_mode="zeros")
    plane = estimate_plane(scan, grid)
    angle, offset = errors(plane, motion)
    assert angle < 0.1
    assert offset < 0.15
    assert distrust(plane) is None


def test_all_channels_tell_together_and_their_order_does_not_matter(brain):
    """Noise in one channel and a large lesion in the other: each is worse alone, and any order gives one plane."""
    image, affine = brain
    motion = turned(12, -8, 3, (6, 2, 0))
    generator = torch.Generator().manual_seed(1)
    noisy = image + 150 * torch.randn(image.shape, generator=generator)
    inverted = torch.where(image > 150, 1200 - image, 0.0)
    inverted[20:40, 40:70, 40:65] = 100
    empty = torch.zeros_like(image)
    first = estimate_plane(torch.stack([noisy, inverted, empty]), motion @ affine)
    second = estimate_plane(torch.stack([empty, inverted, noisy]), motion @ affine)
    assert first == second
    angle, offset = errors(first, motion)
    assert angle < 0.2
    assert offset < 0.2
    alone = errors(estimate_plane(noisy, motion @ affine), motion)
    assert angle + offset < sum(alone)


def test_a_channel_that_shows_no_head_does_not_matter(brain):
    """Noise everywhere, larger than a head, and a map of a lesion."""
    image, affine = brain
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    lesion = torch.zeros_like(image)
    lesion[20:26, 40:50, 40:50] = 1
    with pytest.raises(ValueError, match="no head found"):
        estimate_plane(noise, affine)
    assert estimate_plane(torch.stack([noise, image, lesion]), affine) == estimate_plane(image, affine)


def test_a_channel_twice_is_that_channel(brain):
    image, affine = brain
    once, twice = (estimate_plane(torch.stack([image] * n), turned(5, 9) @ affine) for n in (1, 2))
    np.testing.assert_allclose(once.normal, twice.normal, atol=1e-4)
    assert once.similarity == pytest.approx(twice.similarity, abs=1e-4)
    assert once.margin == pytest.approx(twice.margin, abs=1e-3)


def test_a_plane_set_by_hand_is_where_it_was_set_and_has_its_quality(brain):
    image, affine = brain
    right = set_plane(image, affine, 0, 0, 0)
    assert right.normal == (1, 0, 0)
    assert right.offset == pytest.approx(0, abs=1e-9)
    found = estimate_plane(image, affine)
    assert right.similarity == pytest.approx(found.similarity, abs=0.01)
    beside = set_plane(image, affine, 10, 0, 6)
    x, y, z = beside.normal
    assert math.degrees(math.atan2(y, x)) == pytest.approx(10)
    assert z == 0
    assert beside.offset == pytest.approx(6 - 17 * math.sin(math.radians(10)))  # the array's middle is at y = -17 mm
    assert beside.similarity < 0.5 * right.similarity
    nothing = set_plane(torch.zeros(10, 10, 10), IDENTITY, 0, 0, 1)
    assert nothing.offset == 5.5
    assert math.isnan(nothing.similarity)


@pytest.mark.parametrize("axes", ["LAS", "LPS", "LIA", "PIR"])
def test_the_plane_does_not_depend_on_axis_order_and_handedness(brain, axes):
    image, affine = brain
    affine = turned(9, -6, 4, (7, 20, -30)) @ affine
    lesioned = image.clone()
    lesioned[20:35, 40:60, 40:60] = 1500
    expected = estimate_plane(lesioned, affine)
    file = nib.Nifti1Image(lesioned.numpy(), turned(0, 0) @ IDENTITY)
    ornt = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(axes))
    stored = file.as_reoriented(ornt)
    plane = estimate_plane(
        torch.from_numpy(np.ascontiguousarray(stored.dataobj)), affine @ torch.from_numpy(stored.affine)
    )
    np.testing.assert_allclose(plane.normal, expected.normal, atol=1e-3)
    assert plane.offset == pytest.approx(expected.offset, abs=0.05)


def test_a_mirrored_input_gives_the_mirrored_plane(brain):
    image, affine = brain
    image = image.clone()
    image[60:80, 40:60, 50:70] *= 0.3
    affine = turned(12, -7, 0, (9, 0, 0)) @ affine
    reflection = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
    plane, mirrored = estimate_plane(image, affine), estimate_plane(image, reflection @ affine)
    x, y, z = plane.normal
    np.testing.assert_allclose(mirrored.normal, (x, -y, -z), atol=2e-3)
    assert mirrored.offset == pytest.approx(-plane.offset, abs=0.1)


@pytest.mark.parametrize("background", [-1024.0, -1500.0, -3.6, -0.4])
def test_the_background_value_does_not_matter(brain, background):
    image, affine = brain
    affine = turned(-15, 11, 0, (10, 0, 0)) @ affine
    scaled = image / 300 if background > -100 else image
    plane = estimate_plane(torch.where(image > 1, scaled, background), affine)
    angle, offset = errors(plane, turned(-15, 11, 0, (10, 0, 0)))
    assert angle < 0.15
    assert offset < 0.2


def test_thick_slices_are_aligned(brain):
    image, affine = brain
    motion = turned(13, -9, 0, (-8, 5, 0))
    grid = torch.diag(torch.tensor([1.0, 1, 6.5, 1], dtype=torch.float64))
    grid[:3, 3] = torch.tensor([-110.0, -130, -100])
    scan, _ = resample(image, motion @ affine, grid, (220, 260, 30), padding_mode="zeros")
    angle, offset = errors(estimate_plane(scan, grid), motion)
    assert angle < 0.4
    assert offset < 0.4


def test_a_large_one_sided_lesion_does_not_pull_the_plane(brain):
    image, affine = brain
    motion = turned(-10, 6, 0, (5, 0, 0))
    x, y, z = lattice(image.shape, 2.0, image.device).reshape(3, *image.shape)
    for value in (100.0, 2000.0):
        lesion = ((x + 35) ** 2 + (y - 5) ** 2 + (z - 10) ** 2 < 25**2) & (image > 0)
        angle, offset = errors(estimate_plane(torch.where(lesion, value, image), motion @ affine), motion)
        assert angle < 0.2
        assert offset < 0.2


def test_a_cropped_field_of_view_is_unknown_rather_than_empty(brain):
    image, affine = brain
    motion = turned(8, 5, 0, (4, 0, 0))
    cropped = image[25:]
    crop = IDENTITY.clone()
    crop[0, 3] = 25
    angle, offset = errors(estimate_plane(cropped, motion @ affine @ crop), motion)
    assert angle < 0.3
    assert offset < 0.3


def test_one_hemisphere_is_distrusted(brain):
    image, affine = brain
    hemisphere = image.clone()
    hemisphere[50:] = 0
    assert distrust(estimate_plane(hemisphere, affine)) is not None
    assert distrust(estimate_plane(image[:50], affine)) is not None


def test_noise_is_no_head():
    noise = torch.randn(96, 96, 96, generator=torch.Generator().manual_seed(0))
    assert refusal(noise) is not None


def solid(inside: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A body of one material with 2 % noise."""
    return 1000 * inside.float() + 20 * torch.randn(inside.shape, generator=torch.Generator().manual_seed(seed))


def place() -> torch.Tensor:
    """Coordinates `(3, 100, 110, 100)` of 2 mm voxels about the middle, mm."""
    return lattice((100, 110, 100), 2.0, torch.device("cpu")).reshape(3, 100, 110, 100)


def test_a_bottle_is_no_head_however_symmetric_it_is_outside():
    x, y, z = place()
    upright = (x**2 + y**2 < 75**2) & (z.abs() < 80)
    lying = (x**2 / 75**2 + z**2 / 70**2 < 1) & (y.abs() < 90) & ((x.abs() > 30) | (z < 40))  # grooved along the top
    block = (x.abs() < 60) & (y.abs() < 80) & (z.abs() < 70)
    for body in (upright, lying, block):
        assert refusal(solid(body)) is not None
    assert "inside, the two sides do not match" in refusal(solid(lying))


def test_a_symmetric_outline_with_different_insides_is_no_head():
    """An ellipsoid of a head's size whose contents differ from side to side."""
    x, y, z = place()
    texture = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(x.shape, dtype=np.float32), 2.5)
    ellipsoid = (x / 70) ** 2 + (y / 90) ** 2 + (z / 75) ** 2 < 1
    image = 1000 * ellipsoid * (1 + torch.from_numpy(texture / texture.std()) * 0.15)
    assert "do not match (similarity" in refusal(image)
    symmetric = 1000 * ellipsoid * (1 + torch.from_numpy((texture + texture[::-1]) / texture.std()) * 0.15)
    assert refusal(symmetric) is None


@pytest.mark.parametrize(
    ("half_axes", "message"),
    [((165, 105), "lies outside 192 x 240 x 192 mm"), ((110, 105), "expected at most 5000 ml")],
)
def test_a_torso_is_too_large_for_a_head(half_axes, message):
    x, y, z = lattice((170, 110, 100), 2.0, torch.device("cpu")).reshape(3, 170, 110, 100)
    torso = ((x / half_axes[0]) ** 2 + (y / half_axes[1]) ** 2 < 1) & (z.abs() < (40 if half_axes[0] > 150 else 90))
    assert message in refusal(solid(torso))


@pytest.mark.parametrize("turn", [(90, 0), (0, 90), (60, 0), (0, -75)])
def test_a_header_with_the_wrong_axes_is_distrusted(brain, turn):
    """The nose or the crown lies to one side: the true plane is far outside the poses that are searched."""
    image, affine = brain
    image = image.clone()
    image[20:35, 40:60, 40:60] *= 0.4
    assert distrust(estimate_plane(image, turned(*turn) @ affine)) is not None


@pytest.mark.parametrize("share", [[0.3, 0.6, 0.1], [0.45, 0.1, 0.45]])
def test_with_motion_during_the_scan_the_plane_is_right_or_distrusted(brain, share):
    """The head turns by 12 to 20 degrees twice; lines of k-space, by their share, are of one pose after the other.

    The true pose is that at the centre of k-space.
    """
    image, affine = brain
    lines, start = torch.zeros(image.shape, dtype=torch.complex64), 0
    for pose, part in zip((turned(12, -9, 5, (6, 4, 0)), IDENTITY, turned(-10, 15)), share, strict=True):
        head, _ = resample(image, pose @ affine, affine, image.shape, padding_mode="zeros")
        stop = start + round(part * image.shape[1])
        lines[:, start:stop] = torch.fft.fftshift(torch.fft.fft(head, dim=1), dim=1)[:, start:stop]
        start = stop
    ghosted = torch.fft.ifft(torch.fft.ifftshift(lines, dim=1), dim=1).abs()
    assert (ghosted - image).abs().mean() > 0.03 * image.mean()
    plane = estimate_plane(ghosted, affine)
    angle, offset = errors(plane, IDENTITY)
    assert distrust(plane) is not None or (angle < 2 and offset < 2)


def refusal(image: torch.Tensor) -> str | None:
    try:
        return distrust(estimate_plane(image, torch.diag(torch.tensor([2.0, 2, 2, 1]))))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    ("image", "affine", "message"),
    [
        (torch.full((40, 40, 40), 7.0), IDENTITY, "constant, every voxel is 7"),
        (torch.rand(2, 4, 40, 40, 40), IDENTITY, r"got \(2, 4, 40, 40, 40\)"),
        (torch.full((40, 40, 40), torch.nan), IDENTITY, "64000 voxels are not finite"),
        (torch.rand(40, 40, 1), IDENTITY, r"got \(40, 40, 1\)"),
        (torch.rand(40, 40, 40), torch.diag(torch.tensor([1.0, 0, 1, 1])), "must be invertible"),
        (torch.rand(40, 40, 40) * torch.eye(40), IDENTITY, "no head found: the largest bright body is"),
    ],
)
def test_what_is_not_a_head_scan_is_refused_by_name(image, affine, message):
    with pytest.raises(ValueError, match=message):
        estimate_plane(image, affine)


def test_distrust_names_the_figure():
    plane = MidsagittalPlane((1.0, 0, 0), 0.0, (0, 0, 0), 0.6, 0.3, 0.7, 0.1, 0.1, 0.6)
    assert "30%" in distrust(plane)


@pytest.mark.parametrize(
    ("similarity", "inside", "good"), [(0.22, 0.81, True), (0.22, 0.65, False), (0.12, 0.87, False)]
)
def test_unlike_sides_are_trusted_where_the_inside_matches(similarity, inside, good):
    # oasis sub-1039, a brain without its skull; one hemisphere; a texture
    plane = MidsagittalPlane((1.0, 0, 0), 0.0, (0, 0, 0), similarity, 0.9, 0.7, 0.1, 0.1, inside)
    assert (distrust(plane) is None) == good


@pytest.mark.parametrize("size", [(64, 70, 61), (65, 70, 61)])
def test_on_the_aligned_grid_a_symmetric_head_equals_its_mirror_image(brain, size):
    image, affine = brain
    motion = turned(15, -20, 6, (11, -7, 5))
    normal = tuple(motion[:3, 0].tolist())
    center = motion[:3, 3]
    plane = MidsagittalPlane(normal, (motion[:3, 0] @ center).item(), tuple(center.tolist()), 1, 1, 1, 0, 0, 1)
    aligned, _ = resample(image, motion @ affine, aligned_affine(plane, 3.0, size), size, padding_mode="zeros")
    torch.testing.assert_close(aligned, aligned.flip(0), atol=0.5, rtol=0)
    shifted = aligned.roll(1, 0)
    assert (shifted - shifted.flip(0)).abs().mean() > 20


def test_the_aligned_grid_keeps_left_right_and_pitch():
    normal = torch.nn.functional.normalize(torch.tensor([1.0, 0.3, -0.2], dtype=torch.float64), dim=0)
    plane = MidsagittalPlane(tuple(normal.tolist()), 0.0, (0.0, 0.0, 0.0), 1, 1, 1, 0, 0, 1)
    affine = aligned_affine(plane, (1.0, 2.0, 3.0), (4, 4, 4))
    torch.testing.assert_close(affine[:3, 0], normal)
    assert nib.aff2axcodes(affine.numpy()) == ("R", "A", "S")
    # the smallest rotation has its axis in the plane of y and z
    rotation = affine[:3, :3] / torch.tensor([1.0, 2, 3], dtype=torch.float64)
    assert (rotation - rotation.T)[1, 2].abs() < 1e-12
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))


def test_a_label_survives_alignment_and_back():
    shape = (182, 218, 182)
    labels = torch.zeros(shape)
    x, y, z = lattice(shape, 1.0, labels.device).reshape(3, *shape)
    labels[(x - 20) ** 2 + y**2 + z**2 < 30**2] = 1
    labels[(x + 40) ** 2 + (y - 20) ** 2 + (z + 10) ** 2 < 6.5**2] = 2  # 1.15 ml
    affine = IDENTITY.clone()
    affine[:3, 3] = torch.tensor([-90.5, -108.5, -90.5])
    normal = turned(12, -17)[:3, 0]
    plane = MidsagittalPlane(
        tuple(normal.tolist()), (normal @ torch.tensor([3.3, 0, 0]).double()).item(), (3.3, 0, 0), 1, 1, 1, 0, 0, 1
    )
    grid = aligned_affine(plane, 1.0, (192, 224, 192))
    there = nearest(labels, affine, grid, (192, 224, 192))
    back = nearest(there, grid, affine, shape)
    for value in (1, 2):
        a, b = labels == value, back == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.98


def nearest(labels: torch.Tensor, affine: torch.Tensor, grid: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    to_voxel = (torch.linalg.inv(affine) @ grid).numpy()
    moved = ndimage.affine_transform(labels.numpy(), to_voxel[:3, :3], to_voxel[:3, 3], shape, order=0)
    return torch.from_numpy(moved)


def test_otsu_splits_two_populations():
    values = torch.cat([torch.linspace(0, 1, 900), torch.linspace(9, 10, 100)])
    assert 1 <= otsu(values) <= 9


def test_neck_and_couch_stay_outside_the_head():
    """A sphere of 90 mm on a pole of 50 mm, with a thin couch behind: the box is centred on the sphere."""
    x, y, z = lattice((120, 120, 160), 2.0, torch.device("cpu")).reshape(3, 120, 120, 160)
    image = torch.where(x**2 + y**2 + (z - 60) ** 2 < 90**2, 1000.0, 0.0)
    image[(x**2 + y**2 < 50**2) & (z < 0)] = 900
    image[(y > -118) & (y < -110)] = 800
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([-119.0, -119, -159])
    volume = head_volume(image[None], affine)
    np.testing.assert_allclose(volume.center, (0, 0, 150 - 80), atol=9)
    axes = frame(torch.tensor([1.0, 0, 0]))
    torch.testing.assert_close(axes, torch.eye(3))
