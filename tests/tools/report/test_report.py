import csv
import json
import re

import nibabel as nib
import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from sa_swin.bootstrap import interval, resamples
from sa_swin.report.cases import cohort_table, pictured
from sa_swin.report.figures import quantities
from sa_swin.report.page import page, read_run, report_command, short
from sa_swin.report.plots import GRID, _precision_recall, _roc


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(1).normal(10, 3, 400)
    low, high = interval(np.mean, values)
    error = values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.05)
    assert interval(np.mean, np.full(9, 0.5)) == (0.5, 0.5)


def test_resamples_keep_the_numbers_of_each_class_and_belong_to_it():
    classes = np.array([0, 1, 1, 0, 1])
    draws = resamples(classes, count=50)
    assert draws.shape == (50, 5)
    assert (classes[draws].sum(axis=1) == 3).all()
    assert len({tuple(draw) for draw in draws}) > 10


def test_the_curves_go_through_the_points_counted_by_hand():
    truth, score = np.array([False, False, True, True]), np.array([0.1, 0.4, 0.35, 0.8])
    sensitivity = dict(zip(GRID.round(2), _roc(truth, score), strict=True))
    assert [sensitivity[x] for x in (0.0, 0.49, 0.5, 1.0)] == [0.5, 0.5, 1.0, 1.0]
    precision = dict(zip(GRID.round(2), _precision_recall(truth, score), strict=True))
    assert [precision[x] for x in (0.0, 0.5, 0.51, 1.0)] == pytest.approx([1, 1, 2 / 3, 2 / 3])


def test_a_cohort_is_counted_by_list():
    lists = {"training": [{"image": "a", "subject": "s", "site": "x"}, {"image": "b", "subject": "s", "site": "y"}]}
    assert cohort_table(lists) == [{"list": "training", "cases": "2", "subjects": "1", "site": "x: 1, y: 1"}]


def test_masks_are_counted_and_not_listed():
    lists = {"testing": [{"image": "a", "label": "masks/a.nii.gz", "side": "left"}, {"image": "b", "side": "left"}]}
    expected = {"list": "testing", "cases": "2", "subjects": "2", "masks": "1", "side": "left: 2"}
    assert cohort_table(lists) == [expected]


def test_training_and_validation_values_of_a_quantity_share_a_panel_and_losses_come_first():
    scalars = {name: [(1, 0.5)] for name in ("dice", "loss", "neg_loss", "train_loss", "train_symmetry", "symmetry")}
    found = quantities(scalars)
    assert list(found) == ["loss", "dice", "symmetry"]
    assert sorted(found["loss"]) == sorted(found["symmetry"]) == ["training", "validation"]
    assert list(found["dice"]) == ["validation"]
    assert list(quantities({"neg_loss": [(1, 0.5)]})) == ["neg_loss"]


def test_a_training_alone_says_which_weights_were_kept(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        for epoch, (loss, dice) in enumerate([(1.5, 0.25), (1.25, 0.75), (1.0, 0.75), (0.5, 0.5)], 1):
            writer.add_scalar("train_loss", loss, epoch)
            writer.add_scalar("dice", dice, epoch)
        writer.add_scalar("dice", float("nan"), 5)
    record(tmp_path, "train")
    path = tmp_path / "run_train.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"config": {"validate": {"key_metric": {"dice": {}}}}}))
    text = page(read_run(tmp_path))
    assert "epoch 2, whose weights were kept (model.pt): the highest dice of the validation" in text
    assert "<td>0.25 (epoch 1)</td><td>0.75 (epoch 2)</td>" in text
    assert "<td>0.5 (epoch 4)</td><td>1.5 (epoch 1)</td>" in text


def test_losses_of_whole_batches_are_told_once_and_not_by_case(tmp_path):
    rows = [
        {
            "subject": f"s{i}",
            "image": f"/{i}.nii.gz",
            "asymmetry": i / 10,
            "healthy": i < 2,
            "loss": 2.5,
            "symmetry": 0.5,
        }
        for i in range(4)
    ]
    write_table(tmp_path / "cases.csv", rows)
    text = page(read_run(tmp_path))
    assert "<td>mean loss, symmetry</td><td>0.5</td><td></td><td>4</td>" in text
    assert "<th>subject</th><th>asymmetry</th><th>healthy</th></tr>" in text
    assert "prediction red" not in text


def write_table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def record(folder, workflow, **paths):
    content = {
        "workflow": workflow, "bundle": "sa_swin_segment", "started": "now", "commit": "abc+changes", "seed": 3,
        "paths": {name: str(path) for name, path in paths.items()}, "versions": {"torch": "9.9"},
        "machine": {"gpu": None}, "config": {"align": False, "spacing": 3.0, "note": "<knob>"},
    }  # fmt: skip
    (folder / f"run_{workflow}.json").write_text(json.dumps(content))


@pytest.fixture
def evaluation(tmp_path):
    """An evaluation of two segmented cases, stored LPS, with a lesion on the patient's right."""
    data, results, rows, entries = tmp_path / "data", tmp_path / "results", [], []
    (data / "anat").mkdir(parents=True)
    (results / "anat").mkdir(parents=True)
    affine = np.diag([-4.0, -4.0, 4.0, 1.0])
    affine[:3, 3] = (62, 70, -60)
    for number, dice in enumerate((0.25, 0.75)):
        array = np.random.default_rng(number).uniform(50, 100, (32, 36, 30)).astype(np.float32)
        mask = np.zeros(array.shape, np.uint8)
        mask[3:8, 10:20, 10:20] = 1
        names = f"s{number}.nii.gz", f"s{number}_label.nii.gz", f"s{number}_pred.nii.gz"
        for path, volume in ((data / "anat" / names[0], array), (data / names[1], mask)):
            nib.save(nib.Nifti1Image(volume, affine), path)
        nib.save(nib.Nifti1Image(np.roll(mask, number, axis=1), affine), results / "anat" / names[2])
        image = str(data / "anat" / names[0])
        entries.append({"image": f"anat/{names[0]}", "label": names[1], "subject": f"s{number}"})
        rows.append({"subject": f"<s{number}>", "image": image, "dice": dice, "hd95_mm": "" if number else 4.5,
                     "volume_ml": 32.0, "predicted_ml": 30.0 + number, "volume_error_ml": number - 2.0,
                     "plane": "estimated", "plane_similarity": 0.8, "plane_margin": 0.5})  # fmt: skip
    write_table(results / "cases.csv", rows)
    (data / "list.json").write_text(json.dumps({"testing": entries}))
    record(results, "evaluate", dataset_dir=data, datalist=data / "list.json", output_dir=results)
    return results


def test_the_page_holds_everything_and_loads_nothing(evaluation):
    text = page(read_run(evaluation, ids=True))
    assert "Not for clinical use" in text
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert len(sources) == 3  # Dice and volume, mosaic, alignment
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert re.search(r"<td>mean dice</td><td>0.5</td><td>0.25 to 0.75</td><td>2</td>", text)
    assert re.search(r"<td>mean hd95 mm</td><td>4.5</td>", text)
    for fact in ("abc+changes", "9.9", "&lt;knob&gt;", "&lt;s0&gt;", "<td>testing</td><td>2</td><td>2</td>"):
        assert fact in text, fact
    assert "<s0>" not in text


def test_a_case_is_shown_on_the_aligned_grid_whatever_its_storage(evaluation):
    run = read_run(evaluation)
    case = pictured(run, run.rows[0], "first")
    voxels = np.argwhere(case["truth"])
    assert (voxels[:, 0] > case["truth"].shape[0] / 2).all()  # RAS: the right is at the high indices
    np.testing.assert_array_equal(case["truth"], case["prediction"])
    np.testing.assert_array_equal(case["mirrored"], case["image"][::-1])
    assert len(voxels) * 64 == pytest.approx(500 * 64, rel=0.05)


def test_a_classification_has_curves_calibration_and_confusion(tmp_path):
    generator = np.random.default_rng(0)
    rows = []
    for number in range(20):
        p = float(np.clip(0.3 + 0.4 * (number % 2) + 0.2 * generator.normal(), 0, 1))
        rows.append({"subject": f"s{number}", "image": f"/gone/{number}.nii", "probability_0": 1 - p,
                     "probability_1": p, "prediction": int(p > 0.5), "label": number % 2})  # fmt: skip
    write_table(tmp_path / "cases.csv", rows)
    text = page(read_run(tmp_path))
    for description in ("ROC and precision-recall, class 1", "calibration, class 1", "confusion matrix"):
        assert f'alt="{description}"' in text
    assert "no record of its run" in text
    assert "AUC, class 1" in text


def test_an_inference_shows_findings(evaluation):
    (evaluation / "run_evaluate.json").rename(evaluation / "run_inference.json")
    rows = [{"subject": "s0", "image": "/x", "volume_ml_class1": 3.5, "side_class1": "right"}]
    write_table(evaluation / "cases.csv", rows)
    write_table(evaluation / "findings.csv", [{"subject": "s0", "finding": 1, "side": "right", "volume_ml": 3.5}])
    text = page(read_run(evaluation))
    assert "<h2>Findings</h2>" in text
    assert "<h2>Figures</h2>" not in text


def test_a_folder_without_a_run_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"sa-swin report: .* holds no run: expected cases.csv"):
        report_command(str(tmp_path))


def test_numbers_are_short_and_words_stay():
    assert [short(v) for v in (0.123456, "0.123456", "12", None, "1.2.3", True)] == [
        "0.1235", "0.1235", "12", "", "1.2.3", "True",
    ]  # fmt: skip
