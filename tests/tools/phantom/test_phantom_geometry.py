"""Poses, thinned volumes and planes of the built-in cohort."""

import nibabel as nib
import numpy as np
import pytest

from sa_swin.phantom.anatomy import plane_transform, thinned, thinned_affine
from sa_swin.phantom.geometry import head_points, random_pose


def test_head_points_undo_the_pose():
    pose = random_pose(np.random.default_rng(0), 20.0)
    points = head_points((3, 4, 5), np.diag([2.0, 2, 2, 1]), pose)
    world = points.numpy() @ pose.rotation.T + pose.shift
    np.testing.assert_allclose(world[1, 2, 3], [2, 4, 6], atol=1e-4)
    assert np.array([2.0, 4, 6]) @ pose.normal - pose.offset == pytest.approx(float(points[1, 2, 3, 0]), abs=1e-4)


def test_roll_turns_about_the_front_to_back_axis_and_yaw_about_the_vertical_one():
    generator = np.random.default_rng(1)
    pose = random_pose(generator, 20.0)
    roll, yaw, _ = np.deg2rad(pose.angles)
    np.testing.assert_allclose(pose.normal, [np.cos(roll) * np.cos(yaw), np.cos(roll) * np.sin(yaw), -np.sin(roll)])


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_thinning_keeps_a_ramp_where_it_was(factor):
    ramp = np.broadcast_to(np.arange(13, dtype=np.float32)[:, None, None], (13, 13, 13))
    kept = thinned(ramp, factor)
    where = thinned_affine(np.eye(4), (13, 13, 13), factor) @ [1, 1, 1, 1]
    np.testing.assert_allclose(kept[1, 1, 1], where[0], atol=1e-5)


def test_the_plane_between_two_hemispheres_is_found_through_the_affine():
    affine = np.array([[-2.0, 0, 0, 61], [0, 0, 2, -50], [0, -2, 0, 60], [0, 0, 0, 1]])
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, np.moveaxis(np.indices((60, 60, 60)), 0, -1)), -1, 0)
    normal = np.array([np.cos(0.1), np.sin(0.1), 0])
    lateral = x * normal[0] + y * normal[1] - 5
    ball = x**2 + y**2 + z**2 < 45**2
    transform = plane_transform(ball & (lateral < -1), ball & (lateral > 1), affine)
    on_plane = transform @ [*(5 * normal + 20 * np.array([-normal[1], normal[0], 0])), 1]
    assert abs(on_plane[0]) < 0.5
    np.testing.assert_allclose(transform[0, :3], normal, atol=0.01)
