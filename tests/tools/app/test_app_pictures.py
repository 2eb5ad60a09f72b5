import numpy as np
import torch
from monai.data import MetaTensor

from sa_swin.app.pictures import AXES, cut, distances, finer, lesion_place, on_screen
from sa_swin.report.figures import seen


def test_a_place_is_marked_where_its_voxel_is_drawn():
    shape, place = (5, 7, 9), (1, 2, 6)
    volume = np.zeros(shape)
    volume[place] = 1
    for view in AXES:
        column, row = on_screen(place, view, shape)
        assert np.argwhere(seen(cut(volume, view, place))).tolist() == [[row, column]]


def test_a_finer_grid_has_the_same_middle_and_its_plane_at_distance_zero():
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = 3 * turn * torch.sign(torch.linalg.det(turn))
    affine[:3, 3] = torch.tensor([4.0, -7.0, 11.0])
    pair = MetaTensor(torch.zeros(2, 10, 12, 8), affine=affine)
    grid = finer(pair, [1.0] * 3, (31, 33, 35))
    middle = torch.tensor([15.0, 16.0, 17.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(grid @ middle, affine @ torch.tensor([4.5, 5.5, 3.5, 1.0], dtype=torch.float64))
    found = distances(pair, grid, (31, 33, 35))
    np.testing.assert_allclose(found[15], 0, atol=1e-9)
    np.testing.assert_allclose(np.abs(found[18]), 3, atol=1e-9)


def test_the_largest_finding_is_shown_where_the_peak_is_not_in_a_mask():
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[2:7, 2:7, 2:7] = 1
    mask[15, 15, 15] = 2
    assert lesion_place(mask, []) == {"the largest lesion": (4, 4, 4)}
    assert lesion_place(mask, [(3, 3, 3)]) == {}
    assert lesion_place(np.zeros_like(mask), []) == {}
