"""Where a head is and what shape it has: the pose of the scanner's view and a smooth deformation of the anatomy.

Three frames, all RAS in mm: the *world* of the image, the *head* (the world after undoing the tilt and the shift; its
midsagittal plane is x = 0) and the *anatomy* (the head after undoing the deformation). Points are `(..., 3)` tensors.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from sa_swin.phantom.anatomy import normalized_grid, sample_normalized

EXTENT_MM = 136.0
"""Random fields span this far from the centre of the head, each way."""


@dataclass(frozen=True)
class Field:
    """A smooth random field of the head: `(C, n, n, n)` values on a lattice, and the lattice's step in mm."""

    values: Tensor
    step: float

    def __call__(self, points: Tensor) -> Tensor:
        """The field at `points`, `(C, ...)`."""
        n = self.values.shape[1]
        affine = np.diag([self.step, self.step, self.step, 1.0])
        affine[:3, 3] = -self.step * (n - 1) / 2
        grid = normalized_grid(points, affine, (n, n, n)).clamp(-1, 1)
        return sample_normalized(self.values, grid)


def random_field(generator: np.random.Generator, smoothness: float, channels: int = 1) -> Field:
    """White noise smoothed by a Gaussian of `smoothness` mm standard deviation, scaled to unit variance."""
    step = max(2.0, smoothness / 2)
    n = 2 * int(np.ceil(EXTENT_MM / step)) + 1
    noise = generator.standard_normal((channels, n, n, n), dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, (0, *[smoothness / step] * 3), mode="wrap")
    return Field(torch.from_numpy(noise / noise.std()), step)


@dataclass(frozen=True)
class Pose:
    """A rigid motion: a point of the head at `p` lies at `rotation @ p + shift` in the world.

    Args:
        rotation: `(3, 3)`.
        shift: `(3,)`, mm.
        angles: roll (about the antero-posterior axis), yaw (about the vertical one) and pitch, degrees.
    """

    rotation: np.ndarray
    shift: np.ndarray
    angles: tuple[float, float, float]

    @property
    def normal(self) -> np.ndarray:
        """Unit normal of the midsagittal plane in the world, towards the subject's right."""
        return self.rotation[:, 0]

    @property
    def offset(self) -> float:
        """Distance in mm along the normal from the world's origin to the midsagittal plane."""
        return float(self.normal @ self.shift)


def random_pose(generator: np.random.Generator, tilt: float) -> Pose:
    """Roll, yaw and pitch uniform within `tilt` degrees, and a shift within as many mm, 10 at most, along each axis."""
    roll, yaw, pitch = (float(angle) for angle in generator.uniform(-tilt, tilt, 3))
    rotation = Rotation.from_euler("ZYX", [yaw, roll, pitch], degrees=True).as_matrix()
    return Pose(rotation, generator.uniform(-1, 1, 3) * min(tilt, 10.0), (roll, yaw, pitch))


def head_points(shape: tuple[int, ...], affine: np.ndarray, pose: Pose) -> Tensor:
    """Where the voxels of an image lie in the head: `(*shape, 3)`, mm.

    Args:
        shape: `(X, Y, Z)`.
        affine: `(4, 4)`, voxels to the world.
        pose: of the head in the world.
    """
    matrix = pose.rotation.T @ affine[:3, :3]
    start = pose.rotation.T @ (affine[:3, 3] - pose.shift)
    points = torch.empty(*shape, 3)
    for axis in range(3):
        points[..., axis] = float(start[axis])
        for i, n in enumerate(shape):
            steps = torch.arange(n, dtype=torch.float32) * float(matrix[axis, i])
            points[..., axis] += steps.reshape([-1 if i == j else 1 for j in range(3)])
    return points


@dataclass(frozen=True)
class Deformation:
    """From the head to the anatomy: a displacement, a scaling and the anatomy's own centre.

    Args:
        displacement: field of 3 channels, mm.
        torque: displacement in mm, forward on the right and backward on the left (Yakovlev's petalia).
        scale: `(3,)`.
        centre: `(3,)`, where the head's origin lies in the anatomy, mm.
    """

    displacement: Field
    torque: float
    scale: np.ndarray
    centre: np.ndarray

    def __call__(self, points: Tensor) -> Tensor:
        moved = points + self.displacement(points).movedim(0, -1)
        moved[..., 1] -= self.torque * torch.tanh(points[..., 0] / 25)
        return moved.mul_(torch.tensor(self.scale).float()).add_(torch.tensor(self.centre).float())


def random_deformation(
    generator: np.random.Generator, centre: np.ndarray, amount: float, asymmetry: float
) -> Deformation:
    """A deformation that keeps the midsagittal plane where it is.

    Args:
        generator: source of randomness.
        centre: `(3,)`, where the head's origin lies in the anatomy, mm.
        amount: factor on displacements and scalings; 0 leaves the anatomy alone.
        asymmetry: share, in [0, 1], of the part that differs between the sides.
    """
    parts = ((40.0, 3.0), (18.0, 1.5), (9.0, 1.0))
    fields = [random_field(generator, smoothness, 3) for smoothness, _ in parts]
    torque = float(generator.normal(0.5, 0.4)) * amount * asymmetry / 0.2
    scale = 1 + amount * generator.uniform(-0.06, 0.06, 3)
    step = 4.0
    n = 2 * int(EXTENT_MM / step) + 1
    axis = torch.linspace(-EXTENT_MM, EXTENT_MM, n)
    lattice = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    values = sum(amplitude * field(lattice) for (_, amplitude), field in zip(parts, fields, strict=True))
    return Deformation(Field(amount * balanced(values, axis, asymmetry), step), torque, scale, centre)


def balanced(values: Tensor, axis: Tensor, asymmetry: float) -> Tensor:
    """Split a displacement `(3, X, Y, Z)` into mirror-symmetric and other part, and keep `asymmetry` of the other.

    No lateral displacement remains at x = 0, so that the midsagittal plane stays.
    """
    reflected = values.flip(1) * torch.tensor([-1.0, 1.0, 1.0]).reshape(3, 1, 1, 1)
    other = asymmetry * (values - reflected) / 2
    other[0] *= (1 - torch.exp(-((axis / 12) ** 2))).reshape(-1, 1, 1)
    return (values + reflected) / 2 + other


def radial_push(points: Tensor, centre: Tensor, radius: float, shift: float) -> Tensor:
    """Where the tissue at `points` lay before something of `radius` mm grew at `centre` and pushed it outward.

    Tissue moves by up to `shift` mm at the surface and less beyond; `(..., 3)`.
    """
    offset = points - centre
    distance = offset.norm(dim=-1, keepdim=True)
    size = (
        shift
        * (distance / radius).clamp(max=1)
        * torch.exp(-(((distance - radius).clamp(min=0) / (1.2 * radius)) ** 2))
    )
    return -offset / distance.clamp(min=1e-3) * size
