"""A scan's maps and masks as files of a derivatives dataset, with their sidecars, and its figures."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor

from custom.evaluation.ensemble import DISAGREEMENT
from custom.support.files import write_whole
from custom.volumes.nifti import write_nifti
from sa_swin.app.dataset import sidecar
from sa_swin.app.models import Model
from sa_swin.app.scans import AppScan
from sa_swin.asymmetry.norm import Norm

INTERVALS = ("volume_low", "volume_high", "side_set", "class_set", "cannot_tell", "coverage")
"""Columns of `custom.evaluation.conformal`, those of a class without its suffix."""
LESIONS = "_desc-lesion_dseg"
PLANE = ("yaw_deg", "roll_deg", "offset_mm", "similarity", "overlap", "margin", "angle_error", "offset_error")


def unit_of(norm: Norm | None) -> str:
    """Unit of an asymmetry map."""
    return "in healthy standard deviations (z)" if norm else "in units of the image's texture (about 1 is usual)"


def write_asymmetry(scan: AppScan, output: Path, volume: MetaTensor, norm: Norm | None) -> list[Path]:
    """Write an asymmetry map `(1, X, Y, Z)`, on the grid of the file."""
    path = scan.place(output, "_desc-asymmetry_stat.nii.gz")
    write_nifti(path, volume.as_tensor().numpy()[0], volume.affine.numpy())
    about = "How far each place differs from its counterpart; below 0 where the counterpart is the stranger of the two."
    norms = {"Norm": norm.digest(), "Threshold": norm.threshold} if norm else {}
    return [path, _described(path, sidecar(scan.images, about, Units=unit_of(norm), **norms))]


def write_lesions(scan: AppScan, output: Path, row: Mapping[str, Any], model: Model) -> list[Path]:
    """Write the mask that a bundle predicted, its classes' names and probabilities, on the grid of the file."""
    mask, names = scan.place(output, f"{LESIONS}.nii.gz"), scan.place(output, f"{LESIONS}.tsv")
    write_whole(mask, Path(row["pred"]).read_bytes())
    classes = list(enumerate(model.names))[1:]
    write_whole(names, "index\tname\n" + "".join(f"{index}\t{name}\n" for index, name in classes))
    about = {"Manual": False, "Weights": model.digests[0] if len(model.digests) == 1 else list(model.digests)}
    masked = _described(mask, sidecar(scan.images, "Predicted classes.", **about))
    image = nib.load(row["probability"])
    shares = np.asanyarray(image.dataobj)[..., 1:]
    path = scan.place(output, "_desc-lesion_probseg.nii.gz")
    write_nifti(path, shares[..., 0] if shares.shape[-1] == 1 else shares, image.affine)
    labels = {"LabelMap": [name for _, name in classes], "Units": "probability"}
    shared = _described(path, sidecar(scan.images, "Predicted probabilities.", **about, **labels))
    return [mask, names, masked, path, shared, *write_disagreement(scan, output, row)]


def write_disagreement(scan: AppScan, output: Path, row: Mapping[str, Any]) -> list[Path]:
    """Write where several weights disagree, on the grid of the file; nothing of one."""
    found = Path(row.get(DISAGREEMENT, ""))
    if not found.is_file():
        return []
    path = scan.place(output, "_desc-disagreement_stat.nii.gz")
    write_whole(path, found.read_bytes())
    about = (
        "Standard deviation of the probabilities that several weights give, 0 to 0.5; of the class where it is largest."
    )
    return [path, _described(path, sidecar(scan.images, about, Units="probability"))]


def _described(path: Path, content: str) -> Path:
    file = path.with_name(path.name.replace(".nii.gz", ".json"))
    write_whole(file, content)
    return file


def lesion_figures(row: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Findings, volumes (ml) and sides, per class and per finding."""
    wanted = ("findings", "volume_ml", "left_ml", "right_ml", "side", "asymmetry_index")
    shared = {"coverage": row["coverage"]} if "coverage" in row else {}
    classes = []
    for index, name in list(enumerate(model.names))[1:]:
        doubt = {key: row[f"{key}_class{index}"] for key in INTERVALS if f"{key}_class{index}" in row}
        classes.append({"class": name, **{key: row.get(f"{key}_class{index}") for key in wanted}, **doubt, **shared})
    findings = [{**finding, "class": model.names[finding["class"]]} for finding in row.get("findings", [])]
    return {"lesions": classes, "findings": findings}


def class_figures(row: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Probabilities by class, the likeliest class, and what the probabilities rest on."""
    shares = {name: row[f"probability_{index}"] for index, name in enumerate(model.names)}
    doubt = {name: row[name] for name in (*INTERVALS, DISAGREEMENT) if name in row}
    likeliest = max(shares, key=shares.get)
    return {"classes": {"probability": shares, "likeliest": likeliest, "basis": model.calibration, **doubt}}


def plane_summary(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The plane of an aligned volume, from its meta data, and its quality."""
    figures = {name: float(meta["midsagittal"][name]) for name in PLANE if name in meta["midsagittal"]}
    return {"source": meta["plane"], "reason": meta["plane_reason"], **figures}


def plain(content: Any) -> Any:
    """The same with None in place of numbers that are not defined, which JSON has no word for."""
    if isinstance(content, Mapping):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
