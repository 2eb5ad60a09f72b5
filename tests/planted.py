"""A BIDS folder of tiny heads with sessions, runs, two modalities and masks; faults can be planted in it."""

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE, SPACING = (26, 30, 24), 6.0  # voxels, mm
COLUMNS = ("participant_id", "age", "sex", "diagnosis", "site", "side", "family")
LPS = np.diag([-SPACING, -SPACING, SPACING, 1.0])
SUBJECTS = 20


def head(number: int, lesion: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A box of noise, unlike for each number, and the mask of a lesion left or right in an LPS array."""
    generator = np.random.default_rng(number)
    volume = np.zeros(SHAPE, np.float32)
    volume[3:-3, 3:-3, 3:-3] = 100 + 10 * generator.standard_normal((20, 24, 18))
    mask = np.zeros(SHAPE, np.uint8)
    if lesion:  # the array's first axis runs to the left
        x = slice(18, 22) if lesion == "left" else slice(4, 8)
        mask[x, 8:16, 8:14] = 1
    return volume + 60 * mask, mask


def save(path: Path, array: np.ndarray, affine: np.ndarray = LPS) -> None:
    """Write NIfTI with its scanner's affine in both places of the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)


def image_path(root: Path, subject: str, suffix: str = "T1w", ses: str = "1", run: str | None = None) -> Path:
    name = f"{subject}_ses-{ses}" + (f"_run-{run}" if run else "")
    return root / subject / f"ses-{ses}" / "anat" / f"{name}_{suffix}.nii.gz"


def mask_path(root: Path, subject: str, ses: str = "1") -> Path:
    folder = root / "derivatives" / "lesions" / subject / f"ses-{ses}" / "anat"
    return folder / f"{subject}_ses-{ses}_label-lesion_mask.nii.gz"


def participant(number: int) -> dict[str, str]:
    """A row of participants.tsv: every other subject is ill, on alternating sides; three ages are not known."""
    ill = number % 2 == 0
    return {
        "participant_id": f"sub-{number:02d}",
        "age": "n/a" if number > 17 else str(10 + 3 * number),
        "sex": "MF"[number % 3 == 0],
        "diagnosis": ("tumour" if number % 4 else "infarct") if ill else "healthy",
        "site": ("north", "south")[number > 10],
        "side": ("left", "right")[number % 4 == 0] if ill else "n/a",
        "family": f"F{number // 4}",
    }


def make_tree(root: Path) -> Path:
    """Twenty sound subjects: two sessions for sub-01, two runs of T1w for sub-03, a mask per patient."""
    rows = [participant(number) for number in range(1, SUBJECTS + 1)]
    for number, row in enumerate(rows, 1):
        subject = row["participant_id"]
        side = None if row["side"] == "n/a" else row["side"]
        volume, mask = head(number, side)
        save(image_path(root, subject, run="1" if number == 3 else None), volume)
        save(image_path(root, subject, "FLAIR"), head(100 + number)[0])
        if side:
            save(mask_path(root, subject), mask)
    save(image_path(root, "sub-01", ses="2"), head(31)[0])
    save(image_path(root, "sub-03", run="2"), head(32)[0])
    lines = ["\t".join(COLUMNS), *("\t".join(row[name] for name in COLUMNS) for row in rows)]
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")
    (root / "dataset_description.json").write_text(json.dumps({"Name": "planted", "BIDSVersion": "1.9.0"}))
    return root


def copy_under_another_name(source: Path, target: Path) -> None:
    """The same voxels, compressed anew, with another affine, description and scale in the header."""
    image = nib.load(source)
    header = image.header.copy()
    header["descrip"] = b"another"
    header.set_slope_inter(2.0, 5.0)
    moved = image.affine.copy()
    moved[:3, 3] += 3
    copy = nib.Nifti1Image(np.asarray(image.dataobj.get_unscaled()), moved, header)
    copy.set_qform(moved, 1)
    copy.set_sform(moved, 1)
    copy.header.set_slope_inter(2.0, 5.0)
    raw = bytearray(copy.to_bytes())
    raw[112:120] = np.array([2.0, 5.0], "<f4").tobytes()  # scl_slope, scl_inter: nibabel writes its own
    target.write_bytes(gzip.compress(bytes(raw), compresslevel=1))
