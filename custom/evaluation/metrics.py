"""What is measured on each case, and what is said of all of them: rows and summaries for `custom.evaluation.CaseTable`.

A row function takes a case's entry of `engine.state.output` and returns named numbers; a summary function takes all
rows.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_hausdorff_distance
from monai.networks import one_hot
from torch import Tensor

from custom.evaluation.calibration import calibration_error
from custom.losses import PRETEXT_TASKS
from custom.transforms.findings import Row, asymmetry_index, central_plane, volumes_by_side, voxel_ml

logger = logging.getLogger(__name__)


def classification_row(output: Mapping[str, Any]) -> Row:
    """Probability of each class (`pred`), the predicted class, and the true one where it is known.

    Of several weights, also their `disagreement` (`custom.evaluation.ensemble`).
    """
    probabilities = output["pred"].flatten().tolist()
    row: Row = {f"probability_{index}": value for index, value in enumerate(probabilities)}
    row["prediction"] = int(np.argmax(probabilities))
    if "disagreement" in output:
        row["disagreement"] = float(output["disagreement"])
    if output.get("label") is not None:
        row["label"] = int(output["label"])
    return row


def classification_summary(rows: Sequence[Row]) -> dict[str, float]:
    """AUC, accuracy, balanced accuracy; AUC, sensitivity and specificity of each class against the rest; calibration.

    `auc` is the mean over classes. A figure that the cases do not define (a class without cases) is NaN. `brier` is
    scikit-learn's, with two classes the squared error of one; `calibration_error` the mean over classes of the expected
    calibration error, ten bins.
    """
    from sklearn.metrics import balanced_accuracy_score, brier_score_loss, log_loss  # as in `auc`

    probabilities, labels = class_probabilities(rows)
    predictions = np.array([row["prediction"] for row in rows])
    classes = range(probabilities.shape[1])
    summary: dict[str, float] = {"n": len(rows)}
    for index in classes:
        truth, predicted = labels == index, predictions == index
        summary[f"n_class{index}"] = int(truth.sum())
        summary[f"auc_class{index}"] = auc(truth, probabilities[:, index])
        summary[f"sensitivity_class{index}"] = _mean(predicted[truth])
        summary[f"specificity_class{index}"] = _mean(~predicted[~truth])
    for name in ("auc", "sensitivity", "specificity"):
        summary[name] = _mean([summary[f"{name}_class{index}"] for index in classes])
    summary["accuracy"] = _mean(labels == predictions)
    summary["balanced_accuracy"] = float(balanced_accuracy_score(labels, predictions))
    summary["log_loss"] = float(log_loss(labels, probabilities, labels=classes))
    summary["brier"] = float(brier_score_loss(labels, probabilities, labels=classes))
    summary["calibration_error"] = _mean([calibration_error(labels == i, probabilities[:, i]) for i in classes])
    return summary


def class_probabilities(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `(N, K)` and labels `(N,)` of N rows of `classification_row`."""
    names = [name for name in rows[0] if name.startswith("probability_")]
    probabilities = np.array(
        [[row[name] for name in names] for row in rows]
    )  # of single precision: their sum is near 1
    return probabilities / probabilities.sum(1, keepdims=True), np.array([row["label"] for row in rows])


def segmentation_row(output: Mapping[str, Any]) -> Row:
    """Dice, HD95 (mm), volumes (ml) and asymmetry indices of each foreground class.

    `pred` holds probabilities or a mask; `image`, the aligned volume, is needed for the asymmetry indices alone. Dice
    of two empty masks is 1; HD95 is NaN where either mask is empty, and an index where its own is.
    """
    pred, label = output["pred"], output["label"]
    spacing, voxel = _spacing(label), _voxel_ml(label)
    truth = label.as_subclass(Tensor).round().long()
    mask = pred.as_subclass(Tensor)
    classes = max(len(mask), 2)
    mask = (mask.argmax(0, keepdim=True) if len(mask) > 1 else mask).long()
    pair = [one_hot(volume[None], classes) for volume in (mask, truth)]
    dice = compute_dice(*pair, include_background=False, ignore_empty=False)[0]
    distance = compute_hausdorff_distance(*pair, include_background=False, percentile=95, spacing=spacing)[0]
    row: Row = {}
    for index in range(1, classes):
        suffix = f"_class{index}" if classes > 2 else ""
        volumes = [float((volume == index).sum()) * voxel for volume in (truth, mask)]
        row[f"dice{suffix}"] = float(dice[index - 1])
        row[f"hd95_mm{suffix}"] = _finite(float(distance[index - 1]))
        row[f"volume_ml{suffix}"], row[f"predicted_ml{suffix}"] = volumes
        row[f"volume_error_ml{suffix}"] = volumes[1] - volumes[0]
        if isinstance(output.get("image"), MetaTensor):
            both = ((volume == index)[0].cpu().numpy() for volume in (truth, mask))
            row |= asymmetry_columns(*both, label, output["image"], suffix)
    return row


def asymmetry_columns(
    truth: np.ndarray, mask: np.ndarray, label: MetaTensor, image: MetaTensor, suffix: str = ""
) -> Row:
    """Asymmetry index of what is marked and of what is predicted, two masks `(X, Y, Z)` on the grid of `label`."""
    affine, plane = label.affine.cpu().double().numpy(), central_plane(image)
    true, predicted = (asymmetry_index(*volumes_by_side(volume, affine, plane)) for volume in (truth, mask))
    return {f"asymmetry_index{suffix}": true, f"predicted_asymmetry_index{suffix}": predicted}


def segmentation_summary(rows: Sequence[Row]) -> dict[str, float]:
    """Means over cases of each figure (NaNs left out), the number of cases, and `dice`, the mean over classes too.

    `n_marked` is the number of masks that mark anything; where it is 0, the log says what Dice is worth then.
    """
    names = [name for name in rows[0] if name.startswith(("dice", "hd95_mm"))]
    summary: dict[str, float] = {"n": len(rows), **{name: _mean([row[name] for row in rows]) for name in names}}
    for name in (name for name in names if name.startswith("hd95_mm")):
        summary[f"n_{name}"] = int(sum(np.isfinite(row[name]) for row in rows))  # a missed lesion has no distance
    for name in (name for name in rows[0] if name.startswith("volume_error_ml")):
        summary[name.replace("volume_error", "absolute_volume_error")] = _mean([abs(row[name]) for row in rows])
    for name in (name for name in rows[0] if name.startswith("volume_ml")):
        summary[f"n_{name.replace('volume_ml', 'marked')}"] = marked = sum(row[name] > 0 for row in rows)
        if not marked:
            of_class = name.replace("volume_ml", "").replace("_class", " of class ")
            logger.warning(
                "none of the %d masks marks anything%s: its Dice says only whether the network marks nothing, and "
                "cannot tell which epoch is the best; give masks with findings",
                len(rows),
                of_class,
            )
    summary["dice"] = _mean([summary[name] for name in names if name.startswith("dice")])
    return summary


def embedding_row(output: Mapping[str, Any]) -> Row:
    """Zero-shot asymmetry score of a case, and its embedding as a list."""
    return {
        "asymmetry": float(output["pred"]["asymmetry"]),
        "embedding": output["pred"]["embedding"].flatten().tolist(),
    }


def pretext_row(output: Mapping[str, Any]) -> Row:
    """Zero-shot asymmetry score of a case, whether it is healthy, and the pretext losses of its batch."""
    row: Row = {"asymmetry": float(output["pred"]["asymmetry"])}
    if output.get("label") is not None:
        row["healthy"] = bool(output["label"])
    losses = output["losses"] or {}  # of none, MONAI's decollation makes None
    return {**row, **{name: float(value) for name, value in losses.items()}}


def pretext_summary(rows: Sequence[Row]) -> dict[str, float]:
    """Means of the loss and its parts, `neg_loss` (higher is better), and `zero_shot_auc`.

    The last is the AUC of the asymmetry score as a detector of what is not healthy.
    """
    names = [name for name in rows[0] if name in ("loss", *PRETEXT_TASKS)]
    summary: dict[str, float] = {"n": len(rows), **{name: _mean([row[name] for row in rows]) for name in names}}
    summary["neg_loss"] = -summary.get("loss", float("nan"))  # painted tasks alone have none on real heads
    labelled = [row for row in rows if "healthy" in row]
    abnormal = np.array([not row["healthy"] for row in labelled])
    summary["n_healthy"] = int((~abnormal).sum()) if labelled else 0
    summary["zero_shot_auc"] = auc(abnormal, np.array([row["asymmetry"] for row in labelled]))
    return summary


def auc(truth: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve; NaN where only one class is present."""
    from sklearn.metrics import roc_auc_score  # the better part of a second, which a segmentation does not need

    return float(roc_auc_score(truth, score)) if len(np.unique(truth)) == 2 else float("nan")


def _mean(values: Sequence[float] | np.ndarray) -> float:
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


def _finite(value: float) -> float:
    return value if np.isfinite(value) else float("nan")


def _spacing(label: Tensor) -> list[float]:
    return label.pixdim.tolist() if hasattr(label, "pixdim") else [1.0] * (label.ndim - 1)


def _voxel_ml(label: Tensor) -> float:
    """Of a sheared grid, too, as of CT with a tilted gantry, whose voxels are smaller than the product of the sides."""
    return voxel_ml(label.affine.cpu().double().numpy()) if isinstance(label, MetaTensor) else 1e-3
