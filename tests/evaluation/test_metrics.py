import json
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom.evaluation.metrics import (
    auc,
    classification_row,
    classification_summary,
    embedding_row,
    pretext_row,
    pretext_summary,
    segmentation_row,
    segmentation_summary,
)


def auc_by_hand(truth, score):
    """Share of (positive, negative) pairs in the right order; a tie is half."""
    positives = [s for t, s in zip(truth, score, strict=True) if t]
    negatives = [s for t, s in zip(truth, score, strict=True) if not t]
    wins = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives)
    return wins / len(positives) / len(negatives)


def test_the_auc_counts_pairs_in_the_right_order():
    truth, score = [True, False, True, False, True], [0.9, 0.8, 0.8, 0.1, 0.05]
    assert (
        auc(np.array(truth), np.array(score))
        == pytest.approx(auc_by_hand(truth, score))
        == pytest.approx(3.5 / 6 - 0.0)
    )


def test_volumes_of_a_sheared_grid_are_those_that_inference_has():
    sheared = np.diag([2.0, 2.0, 5.0, 1.0])
    sheared[1, 2] = 2.0  # a tilted gantry: 5 mm along z, and 2 to the front; each voxel still has 2 x 2 x 5 mm
    label = MetaTensor(torch.zeros(1, 8, 8, 8), affine=torch.from_numpy(sheared))
    label[:, 2:7, 2:7, 2:4] = 1
    row = segmentation_row({"pred": label.clone(), "label": label})
    assert row["volume_ml"] == row["predicted_ml"] == pytest.approx(5 * 5 * 2 * 0.020)


def test_the_auc_of_one_class_alone_is_not_defined():
    assert math.isnan(auc(np.array([True, True]), np.array([0.1, 0.2])))
    assert math.isnan(auc(np.array([]), np.array([])))


def test_a_classified_case_is_a_row_of_probabilities():
    row = classification_row({"pred": torch.tensor([0.25, 0.75]), "label": torch.tensor(0)})
    assert row == {"probability_0": 0.25, "probability_1": 0.75, "prediction": 1, "label": 0}
    assert "label" not in classification_row({"pred": torch.tensor([0.25, 0.75])})
    several = {"pred": torch.tensor([0.25, 0.75]), "disagreement": torch.tensor([0.125])}
    assert classification_row(several)["disagreement"] == 0.125


@pytest.fixture
def classified():
    """Three classes; label and probabilities of six cases, the last of which is wrong."""
    cases = [
        (0, (0.8, 0.1, 0.1)),
        (0, (0.5, 0.3, 0.2)),
        (1, (0.1, 0.7, 0.2)),
        (1, (0.2, 0.6, 0.2)),
        (2, (0.1, 0.2, 0.7)),
        (2, (0.6, 0.1, 0.3)),
    ]
    return [classification_row({"pred": torch.tensor(p), "label": y}) for y, p in cases]


def test_classification_is_summarised_as_counted_by_hand(classified):
    summary = classification_summary(classified)
    assert summary["n"] == 6
    assert [summary[f"n_class{i}"] for i in range(3)] == [2, 2, 2]
    assert summary["accuracy"] == pytest.approx(5 / 6)
    assert summary["balanced_accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert [summary[f"sensitivity_class{i}"] for i in range(3)] == pytest.approx([1, 1, 0.5])
    assert [summary[f"specificity_class{i}"] for i in range(3)] == pytest.approx([0.75, 1, 1])
    for index in range(3):
        truth = [row["label"] == index for row in classified]
        score = [row[f"probability_{index}"] for row in classified]
        assert summary[f"auc_class{index}"] == pytest.approx(auc_by_hand(truth, score))
    assert summary["auc_class0"] == pytest.approx(7 / 8)  # the last case scores above one of the two
    assert summary["auc"] == pytest.approx(sum(summary[f"auc_class{i}"] for i in range(3)) / 3)
    assert summary["sensitivity"] == pytest.approx(2.5 / 3)
    assert summary["specificity"] == pytest.approx(2.75 / 3)


def test_a_class_without_cases_has_no_figures_and_spoils_no_means(classified):
    summary = classification_summary(classified[:4])
    assert math.isnan(summary["auc_class2"])
    assert math.isnan(summary["sensitivity_class2"])
    assert summary["n_class2"] == 0
    assert summary["auc"] == pytest.approx(1)
    assert summary["accuracy"] == 1


def boxes(*corners, shape=(20, 10, 10), spacing=(1.0, 1.0, 1.0)):
    """A mask whose class `i + 1` is the `i`th box of (start, stop) along X."""
    mask = torch.zeros(1, *shape)
    for index, (start, stop) in enumerate(corners):
        mask[:, start:stop, 2:8, 2:8] = index + 1
    return MetaTensor(mask, affine=torch.diag(torch.tensor([*spacing, 1.0])))


def probabilities(mask, classes=2):
    return torch.nn.functional.one_hot(mask[0].as_tensor().long(), classes).movedim(-1, 0) * 0.8 + 0.1


@pytest.mark.parametrize("as_probabilities", [True, False])
def test_a_shifted_box_has_the_dice_distance_and_volumes_of_the_shift(as_probabilities):
    spacing = (2.0, 1.0, 1.5)
    label, mask = boxes((4, 8), spacing=spacing), boxes((5, 11), spacing=spacing)
    row = segmentation_row({"pred": probabilities(mask) if as_probabilities else mask, "label": label})
    assert row["dice"] == pytest.approx(2 * 3 / (4 + 6))
    assert row["hd95_mm"] == pytest.approx(6)  # three slices of 2 mm
    assert row["volume_ml"] == pytest.approx(4 * 36 * 3 / 1000)
    assert row["predicted_ml"] == pytest.approx(6 * 36 * 3 / 1000)
    assert row["volume_error_ml"] == pytest.approx(2 * 36 * 3 / 1000)


def test_the_sides_of_what_is_marked_and_predicted_are_told_by_the_plane_of_the_image():
    image = MetaTensor(torch.zeros(2, 20, 10, 10), affine=torch.eye(4))  # its central plane is x = 9.5
    row = segmentation_row({"pred": boxes((2, 6)), "label": boxes((8, 14)), "image": image})
    assert row["predicted_asymmetry_index"] == -1
    assert row["asymmetry_index"] == pytest.approx((4 - 2) / 6)  # x from 10 to 13 is right of it, 8 and 9 left
    row = segmentation_row({"pred": boxes(), "label": boxes((2, 6)), "image": image})
    assert math.isnan(row["predicted_asymmetry_index"])


def test_nothing_found_where_nothing_is_counts_as_right():
    row = segmentation_row({"pred": boxes(), "label": boxes()})
    assert row["dice"] == 1
    assert math.isnan(row["hd95_mm"])


@pytest.mark.parametrize(("pred", "label"), [((4, 8), None), (None, (4, 8))])
def test_a_lesion_missed_or_made_up_has_no_overlap(pred, label):
    row = segmentation_row({"pred": boxes(*[pred] * bool(pred)), "label": boxes(*[label] * bool(label))})
    assert row["dice"] == 0
    assert math.isnan(row["hd95_mm"])


def test_each_class_has_its_figures():
    label, mask = boxes((2, 6), (8, 12)), boxes((2, 6), (10, 14))
    row = segmentation_row({"pred": probabilities(mask, 3), "label": label})
    assert row["dice_class1"] == 1
    assert row["dice_class2"] == pytest.approx(0.5)
    assert row["hd95_mm_class2"] == pytest.approx(2)


def test_segmentations_are_summarised_as_counted_by_hand():
    rows = [
        {"dice": 0.5, "hd95_mm": 4.0, "volume_ml": 1.0, "predicted_ml": 3.0, "volume_error_ml": 2.0},
        {"dice": 1.0, "hd95_mm": float("nan"), "volume_ml": 5.0, "predicted_ml": 1.0, "volume_error_ml": -4.0},
    ]
    summary = segmentation_summary(rows)
    assert summary["n"] == 2
    assert summary["dice"] == 0.75
    assert summary["hd95_mm"] == 4
    assert json.loads(json.dumps(summary))["n_hd95_mm"] == 1  # of a missed lesion there is no distance
    assert summary["absolute_volume_error_ml"] == 3


def test_the_mean_dice_is_over_cases_then_classes():
    rows = [{"dice_class1": 1.0, "dice_class2": 0.0}, {"dice_class1": 0.5, "dice_class2": 0.5}]
    assert segmentation_summary(rows)["dice"] == pytest.approx((0.75 + 0.25) / 2)


def test_an_embedded_case_is_a_row():
    row = embedding_row({"pred": {"embedding": torch.tensor([0.5, -1.0]), "asymmetry": torch.tensor(0.25)}})
    assert row == {"asymmetry": 0.25, "embedding": [0.5, -1.0]}


def test_pretraining_is_summarised_as_counted_by_hand():
    cases = [(0.1, True, 2.0), (0.4, False, 4.0), (0.3, True, 2.0), (0.2, False, 4.0)]
    rows = [
        pretext_row({"pred": {"asymmetry": a}, "label": h, "losses": {"loss": value, "rotation": value / 2}})
        for a, h, value in cases
    ]
    assert rows[1] == {"asymmetry": 0.4, "healthy": False, "loss": 4.0, "rotation": 2.0}
    summary = pretext_summary(rows)
    assert summary["loss"] == 3
    assert summary["neg_loss"] == -3
    assert summary["rotation"] == 1.5
    assert summary["zero_shot_auc"] == pytest.approx(
        auc_by_hand([not h for _, h, _ in cases], [a for a, _, _ in cases])
    )
    assert (summary["n"], summary["n_healthy"]) == (4, 2)


def test_without_labels_there_is_no_zero_shot_auc():
    rows = [pretext_row({"pred": {"asymmetry": 0.1}, "losses": {"loss": 1.0}})]
    summary = pretext_summary(rows)
    assert math.isnan(summary["zero_shot_auc"])
    assert summary["n_healthy"] == 0
