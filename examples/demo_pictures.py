"""Pictures of the demonstration: the loss curves, and cases of each task."""

import csv
import json
from pathlib import Path

import fire
import nibabel as nib
import numpy as np

from custom.figures import curves, mosaic
from custom.transforms import InputContract


def pictures(output: str) -> None:
    """Draw the pictures of a finished demonstration into `<output>/pictures`."""
    out = Path(output)
    contract = InputContract(spacing=3.0, spatial_size=(64, 64, 64))
    for task in ("pretrain", "classify", "segment"):
        curves(out / task / "train", out / "pictures" / f"{task}_curves.png", f"{task}: training, by epoch")
    for task, column in (("pretrain", "asymmetry"), ("classify", "probability_1")):
        rows = sorted(read_table(out / task / "evaluate" / "cases.csv"), key=lambda row: float(row[column]))
        cases = [
            aligned(contract, row, f"{row['subject']}, {column} {float(row[column]):.3f}")
            for row in rows[:2] + rows[-2:]
        ]
        mosaic(cases, out / "pictures" / f"{task}.png", f"{task}: the two lowest and the two highest of {column}")
    rows = sorted(read_table(out / "segment" / "evaluate" / "cases.csv"), key=lambda row: float(row["dice"]))
    chosen = [rows[0], rows[len(rows) // 2], rows[-1]]
    mosaic(
        [segmented(out, row) for row in chosen], out / "pictures" / "segment.png", "segment: worst, median, best Dice"
    )


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table with a header."""
    with path.open() as file:
        return list(csv.DictReader(file))


def aligned(contract: InputContract, row: dict[str, str], name: str) -> dict[str, object]:
    """A case as the network sees it: the aligned image and its mirrored counterpart."""
    image, mirrored = contract({"image": row["image"]})["image"].numpy()
    return {"image": image, "mirrored": mirrored, "name": name}


def segmented(out: Path, row: dict[str, str]) -> dict[str, object]:
    """A case in its file's own space, flipped where it is mirrored, with predicted and true mask."""
    entries = json.loads((out / "cohort" / "datalists" / "segment.json").read_text())["testing"]
    entry = next(entry for entry in entries if entry["subject"] == row["subject"])
    image = Path(entry["image"])
    pred = out / "segment" / "inference" / image.parent / image.name.replace(".nii.gz", "_pred.nii.gz")
    volumes = {"image": out / "cohort" / image, "pred": pred, "label": out / "cohort" / entry["label"]}
    case: dict[str, object] = {name: ras(path) for name, path in volumes.items()}
    return {**case, "mirrored": case["image"][::-1], "name": f"{row['subject']}, Dice {float(row['dice']):.2f}"}


def ras(path: Path) -> np.ndarray:
    """A volume in RAS order."""
    return nib.as_closest_canonical(nib.load(path)).get_fdata()


if __name__ == "__main__":
    fire.Fire(pictures)
