"""Volume files without trust: what a header claims is checked before anything of that size is read.

Read are NIfTI-1 and -2, Analyze pairs and FreeSurfer's MGH; written is NIfTI-1, with nothing in it but voxels and
affine. The affine is nibabel's: the sform where it is set, else the qform. A file of shape `(X, Y, Z, 1)` is the volume
`(X, Y, Z)` that it holds, for whoever reads it here.
"""

import gzip
import math
import os
import stat
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from custom.support.errors import UserError
from custom.support.files import write_whole

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh", ".hdr", ".img")
MOST_VOXELS = 2**30
"""More than a whole head at 0.25 mm."""
MOST_BEFORE = 2**24
"""Bytes before the voxels, extensions included, and bytes that may follow them."""
SMALLEST_RATIO = 1 / 1032
"""Of gzip: no compressed file is smaller than this share of its content (zlib's documentation, "Maximum expansion")."""
SPACING_MM = (0.1, 12.0)
"""Of one axis, in a scan of a head."""
LARGEST_VALUE = 1e12
"""Beyond it, no scan has values, and their variance is soon none that single precision holds."""
SAME_GRID = 1e-2
"""Largest difference of the affines of one grid, mm."""
FARTHEST_MM = 1e4
"""From the world's origin."""
FLATTEST = 0.1
"""Volume of the box that an affine's axes, of unit length, span: 1 when they are orthogonal, 0 when they lie flat."""


class VolumeFileError(UserError):
    """What is wrong with a volume file, in a sentence without its name.

    Args:
        kind: a word for machines: `unreadable`, `not_3d`, `type`, `claims`, `scale`, `affine`, `spacing`.
        problem: what was expected and found, and what to do.
    """

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(kind, problem)
        self.kind = kind
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def open_volume(path: str | Path) -> Any:
    """A volume file by its header, as a nibabel image whose voxels have not been read.

    Raises:
        FileNotFoundError: no such file.
        VolumeFileError: not a volume file, not 3D, of no real numbers, of more voxels than the file can hold or a head
            has, or scaled beyond single precision.
    """
    if not str(path).lower().endswith(SUFFIXES):
        raise VolumeFileError("unreadable", f"not a readable image (expected {', '.join(SUFFIXES)}); convert it")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for ever
            raise VolumeFileError("unreadable", "not a file; give the path of an image")
        _check_start(path)
        image = _as_3d(nib.load(path))
    except (FileNotFoundError, VolumeFileError):
        raise
    except Exception as error:  # a damaged header makes nibabel stumble in many ways
        raise VolumeFileError("unreadable", f"not a readable image ({reason(error)})") from error
    if not isinstance(image, nib.AnalyzeImage | nib.Nifti1Pair | nib.MGHImage):
        raise VolumeFileError("unreadable", f"not a readable image ({type(image).__name__}); convert it to NIfTI")
    _check_shape(image)
    _check_type(image)
    _check_claims(image)
    return image


def read_volume(path: str | Path) -> Any:
    """A volume file as a nibabel image whose voxels can be read: whole, and of gzip with the right checksum.

    nibabel by itself stops at the last voxel, before the checksum, and takes damaged voxels for sound ones.

    Raises:
        FileNotFoundError, VolumeFileError: as `open_volume`; also where the file is cut short or damaged.
    """
    image = open_volume(path)
    try:
        if not str(path).lower().endswith(("gz",)):
            return _as_3d(nib.load(path, mmap=False))  # a mapped file that vanishes kills the process
        end = image.dataobj.offset + _claimed(image)
        with gzip.open(path) as file:
            content = file.read(end + MOST_BEFORE + 1)
        if len(content) > end + MOST_BEFORE:
            raise VolumeFileError("claims", "it holds far more than its header claims; get the file anew")
        if len(content) < end:
            raise EOFError(f"it ends after {len(content)} bytes of {end}")
        return _as_3d(type(image).from_bytes(content))
    except VolumeFileError:
        raise
    except Exception as error:  # so does a damaged file
        problem = f"the header is there, but not all voxels ({reason(error)}); get the file anew"
        raise VolumeFileError("unreadable", problem) from error


def _as_3d(image: Any) -> Any:
    """The image without further axes that hold one volume; any other as it is. No voxel is read."""
    shape = getattr(image, "shape", ())
    if len(shape) <= 3 or set(shape[3:]) != {1}:
        return image
    return type(image)(image.dataobj.reshape(shape[:3]), image.affine, image.header, file_map=image.file_map)


def affine_problem(affine: np.ndarray) -> VolumeFileError | None:
    """What is wrong with a voxel-to-world affine (mm), if anything is; sheared ones, as of a tilted gantry, are not."""
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        return VolumeFileError("affine", "the header's affine cannot be inverted; restore it from the source")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < SPACING_MM[0] or spacing.max() > SPACING_MM[1]:
        problem = f"spacing {_short(spacing)} mm, expected {SPACING_MM[0]:g} to {SPACING_MM[1]:g}; mend the header"
        return VolumeFileError("spacing", problem)
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < FLATTEST:
        return VolumeFileError("affine", "two axes of the header's affine nearly coincide; restore it from the source")
    if np.abs(affine[:3, 3]).max() > FARTHEST_MM:
        problem = f"the header puts the first voxel at {_short(affine[:3, 3])} mm; restore its affine from the source"
        return VolumeFileError("affine", problem)
    return None


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume, or one with channels last, as NIfTI-1 with an empty header but for type, grid and affine.

    Raises:
        custom.support.files.WriteError: when it cannot be written.
    """
    image = nib.Nifti1Image(array.astype(np.int32) if array.dtype == np.int64 else array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    write_whole(path, lambda partial: nib.save(image, partial))


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.3g}") for value in values]


def _check_start(path: str | Path) -> None:
    """Refuse a NIfTI header that puts the voxels, and with them extensions to be read, far into the file."""
    name = str(path).lower()
    if name.endswith(".hdr") and os.path.getsize(path) > MOST_BEFORE:
        raise VolumeFileError("claims", "the header is larger than any header is; get the file anew")
    if not name.endswith((".nii", ".nii.gz")):
        return
    with gzip.open(path) if name.endswith("gz") else open(path, "rb") as file:
        start = file.read(544)
        for order in "<>":
            header = nib.Nifti1Header if _int32(start, order) == 348 else nib.Nifti2Header
            size = header.template_dtype.itemsize
            if _int32(start, order) in (348, 540) and len(start) >= size:
                offset = _checked_offset(header(start[:size], order, check=False))
                if start[size : size + 1].strip(b"\0"):  # extensions follow
                    _check_extensions(start + file.read(max(0, offset - len(start))), size + 4, offset, order)


def _int32(start: bytes, order: str) -> int:
    return int.from_bytes(start[:4], "little" if order == "<" else "big", signed=True)


def _check_extensions(start: bytes, place: int, end: int, order: str) -> None:
    """Refuse extensions that are longer than the room for them: nibabel reads as much as they claim."""
    while place + 8 <= end:
        size = _int32(start[place:], order)
        if not 8 <= size <= end - place:
            raise VolumeFileError("claims", f"an extension of its header claims {size} bytes; get the file anew")
        place += size


def _checked_offset(header: nib.Nifti1Header) -> int:
    """Byte where the voxels begin."""
    offset, slope, inter = (float(header[name]) for name in ("vox_offset", "scl_slope", "scl_inter"))
    if not 0 <= offset <= MOST_BEFORE:
        problem = f"its header puts the voxels at byte {offset:g}, expected {MOST_BEFORE} at most; get the file anew"
        raise VolumeFileError("claims", problem)
    if math.isinf(slope) or (math.isfinite(slope) and slope and not math.isfinite(inter)):
        raise VolumeFileError("scale", f"its header scales values by {slope:g} and adds {inter:g}; mend the header")
    return int(offset)


def _check_shape(image: Any) -> None:
    if len(image.shape) != 3:
        raise VolumeFileError("not_3d", f"expected a 3D volume, got shape {tuple(image.shape)}")
    if min(image.shape) < 1:
        raise VolumeFileError("not_3d", f"expected a 3D volume, got shape {tuple(image.shape)}, which holds no voxel")


def _check_type(image: Any) -> None:
    """Refuse voxels that are no real numbers of 8 bytes or less, and those scaled beyond single precision."""
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        kind = {"c": "complex numbers", "V": "colours"}.get(dtype.kind, str(dtype))
        raise VolumeFileError("type", f"expected one real number per voxel, got {kind}; convert the file")
    slope, inter = (float(getattr(image.dataobj, name, default)) for name, default in (("slope", 1), ("inter", 0)))
    largest = 2.0 ** (8 * dtype.itemsize) if dtype.kind in "iu" else 1.0
    if not largest * abs(slope) + abs(inter) < np.finfo(np.float32).max:
        raise VolumeFileError("scale", f"its header scales values by {slope:g} and adds {inter:g}; mend the header")


def _claimed(image: Any) -> int:
    """Bytes of the voxels, by the header."""
    return math.prod(int(n) for n in image.shape) * image.get_data_dtype().itemsize


def _check_claims(image: Any) -> None:
    shape = " x ".join(str(n) for n in image.shape)
    if math.prod(int(n) for n in image.shape) > MOST_VOXELS:
        raise VolumeFileError("claims", f"its header claims {shape} voxels, more than any scan of a head has")
    file = image.file_map["image"].filename
    if not os.path.isfile(file):
        raise VolumeFileError("unreadable", f"a header without its voxels: no {os.path.basename(file)} beside it")
    size = os.path.getsize(file)
    largest = size / SMALLEST_RATIO if str(file).lower().endswith("gz") else size - image.dataobj.offset
    if _claimed(image) > largest:
        problem = (
            f"the header is there, but not all voxels (it claims {_claimed(image)} bytes, and the file can hold "
            f"{max(0, int(largest))}); get the file anew"
        )
        raise VolumeFileError("unreadable", problem)
