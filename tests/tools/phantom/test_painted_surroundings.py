"""The benchmark that asks whether a painted lesion's surroundings give it away."""

import nibabel as nib
import numpy as np
import pytest

from benchmarks.phantom.surroundings import MARGIN_MM, SIDE_MM, VOXELS, Pair, as_markdown, cube, samples, shares_told


@pytest.fixture
def pair():
    """A lesion of one voxel's radius in the middle, brighter by 1, and nothing else that differs."""
    healthy = np.random.default_rng(0).random((VOXELS,) * 3).astype(np.float32)
    lesion = np.zeros(healthy.shape, bool)
    middle = VOXELS // 2
    lesion[middle - 1 : middle + 1, middle - 1 : middle + 1, middle - 1 : middle + 1] = True
    return Pair(healthy + lesion, healthy, lesion, "tumour")


def test_what_a_network_sees_of_the_surroundings_has_no_lesion_and_a_hole_of_its_margin(pair):
    seen, shown = samples([pair], "surroundings")[0], samples([pair], "lesion")[0]
    assert (seen[0] == seen[1]).all()
    assert (shown[0] - shown[1]).sum() == 8
    across = (seen[0, 0, :, VOXELS // 2, VOXELS // 2] == 0).sum() * SIDE_MM / VOXELS
    assert across == 2 * SIDE_MM / VOXELS + 2 * (MARGIN_MM // (SIDE_MM / VOXELS)) * SIDE_MM / VOXELS


def test_a_trace_is_left_on_purpose_outside_of_the_hole_alone(pair):
    patient, healthy = samples([pair], "trace")[0]
    assert ((patient == 0) == (healthy == 0)).all()
    assert (patient != healthy).float().mean() > 0.5


def test_a_cube_lies_around_its_place_in_the_world():
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (-10, 20, 5)
    values = np.moveaxis(np.indices((60, 50, 40)), 0, -1) @ [2.0, 30.0, 400.0] + (
        -10 + 200 + 500
    )  # x + 10 y + 100 z of the world
    centre = np.array([50.0, 95.0, 80.0])
    found = cube(nib.Nifti1Image(values.astype(np.float32), affine), centre, 1)
    step = SIDE_MM / VOXELS
    assert found.mean() == pytest.approx(centre @ [1, 10, 100], rel=1e-4)
    steps = [found[index] - found[0, 0, 0] for index in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert steps == pytest.approx([step, 10 * step, 100 * step], rel=1e-2)


def test_where_nothing_differs_nobody_is_told_and_where_much_does_everybody(pair, monkeypatch):
    monkeypatch.setattr("benchmarks.phantom.surroundings.EPOCHS", 20)
    assert shares_told([pair] * 8, "surroundings", 0) == {"all": 0.5, "tumour": 0.5}
    assert shares_told([pair] * 8, "trace", 0) == {"all": 1.0, "tumour": 1.0}


def test_the_table_has_a_row_for_what_the_network_sees():
    content = {"run": "r", "about": "a", "n": {"all": 4}, "told": {"the surroundings": [{"all": 0.4}, {"all": 0.6}]}}
    assert "| the surroundings | 0.50 (0.40-0.60) |" in as_markdown(content)
