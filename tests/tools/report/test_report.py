import csv
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch.utils.tensorboard import SummaryWriter

from sa_swin.bootstrap import interval, resamples
from sa_swin.report.cases import chosen, cohort_table, picture_grid, pictured, used_lists
from sa_swin.report.figures import mosaic, quantities, read_scalars
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


def test_of_two_trainings_in_one_folder_the_second_is_shown_and_a_resumed_one_whole(tmp_path):
    for number, (first, last, value) in enumerate([(1, 9, 0.9), (1, 3, 0.1), (3, 5, 0.2)]):
        with SummaryWriter(tmp_path, filename_suffix=str(number)) as writer:
            for epoch in range(first, last + 1):
                writer.add_scalar("dice", value, epoch)
        made = max(tmp_path.glob("events.*"), key=lambda path: path.stat().st_mtime_ns)
        made.rename(tmp_path / f"events.out.tfevents.{number}")
    found = read_scalars(tmp_path)["dice"]
    assert [(step, round(value, 1)) for step, value in found] == [(1, 0.1), (2, 0.1), (3, 0.2), (4, 0.2), (5, 0.2)]


def test_the_training_and_the_validation_of_one_run_lie_in_two_files_and_both_are_shown(tmp_path):
    for run, value in enumerate((0.9, 0.1)):  # the second begun anew in the same folder
        for part, name in enumerate(("dice", "train_loss")):
            with SummaryWriter(tmp_path / "new") as writer:
                for epoch in (1, 2, 3)[: 3 - run]:
                    writer.add_scalar(name, value, epoch)
            (made,) = (tmp_path / "new").iterdir()
            made.rename(tmp_path / f"events.out.tfevents.{run}.{part}")
    found = {
        name: [(step, round(value, 1)) for step, value in points] for name, points in read_scalars(tmp_path).items()
    }
    assert found == {name: [(1, 0.1), (2, 0.1)] for name in ("dice", "train_loss")}


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
        "paths": {name: path and str(path) for name, path in paths.items()}, "versions": {"torch": "9.9"},
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


def test_the_truth_is_shown_where_the_run_was_given_a_relative_folder(evaluation, monkeypatch):
    monkeypatch.chdir(evaluation.parent)
    record(evaluation, "evaluate", dataset_dir="data", datalist="data/list.json", output_dir="results")
    run = read_run(evaluation)
    assert {"truth", "prediction"} <= pictured(run, run.rows[0], "first").keys()


def test_files_that_the_run_did_not_write_are_of_an_earlier_one_and_not_shown(evaluation):
    run = read_run(evaluation)
    prediction = evaluation / "anat" / "s0_pred.nii.gz"
    shutil.copy(prediction, prediction.with_name("s0_asymmetry.nii.gz"))
    asked = run.record["config"]
    for changes, layers in (({}, {"prediction"}), ({"save_asymmetry": True}, {"prediction", "asymmetry"}),
                            ({"save_masks": False}, set())):  # fmt: skip
        run.record["config"] = asked | changes
        assert pictured(run, run.rows[0], "first").keys() & {"prediction", "asymmetry"} == layers


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


def recorded(folder, workflow, settings=None, **paths):
    """A record of a run with these settings."""
    record(folder, workflow, **paths)
    path = folder / f"run_{workflow}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": settings or {}}))


def test_the_title_has_bundle_and_workflow(evaluation):
    assert "<h1>sa_swin_segment, evaluation</h1>" in page(read_run(evaluation))
    assert f"<h1>sa_swin_segment, evaluation: {evaluation.name}</h1>" in page(read_run(evaluation, ids=True))


def test_under_a_fold_and_a_limit_the_cases_that_were_used_are_counted(tmp_path):
    entries = [{"image": f"{i}.nii", "subject": f"s{i}", "fold": int(i > 2)} for i in range(8)]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries, "testing": entries}))
    lists = {"datalist": tmp_path / "list.json"}
    recorded(tmp_path, "train", {"fold": 0, "limit": 4}, **lists)
    recorded(tmp_path, "inference", section="testing", **lists)
    used = used_lists(read_run(tmp_path))
    assert {name: [entry["subject"] for entry in own] for name, own in used.items()} == {
        "training": ["s3", "s4", "s5", "s6"],
        "validation": ["s0", "s1", "s2"],
        "testing": [f"s{i}" for i in range(8)],
    }


def test_an_inference_shows_the_most_remarkable_cases_first_with_the_names_of_classes(tmp_path):
    rows = [{"subject": f"s{i}", "image": f"/gone/{i}.nii", "findings_class1": 1, "volume_ml_class1": float(i % 23)}
            for i in range(22)]  # fmt: skip
    write_table(tmp_path / "cases.csv", rows)
    write_table(tmp_path / "findings.csv", [{"image": "/gone/1.nii", "class": 1, "class_name": "tumour"}])
    run = read_run(tmp_path, ids=True)
    heading, picked = chosen(run)
    assert heading == "the first 20 of 22, by volume of findings in ml, the largest first"
    assert [row["subject"] for row, _ in picked] == [f"s{i}" for i in range(21, 1, -1)]
    text = page(run)
    assert "<th>findings tumour</th><th>volume ml tumour</th>" in text


def test_heads_that_are_not_aligned_are_named_where_no_other_is(tmp_path):
    rows = [{"subject": f"s{i}", "image": "/a", "asymmetry": 0.5, "plane": "as it lies"} for i in range(2)]
    write_table(tmp_path / "cases.csv", rows)
    told = "Not aligned, taken as they lie in their files, 2: s0, s1."
    assert told in page(read_run(tmp_path, ids=True))
    recorded(tmp_path, "inference", {"align": False}, datalist=None)  # of a folder, without one
    assert told not in page(read_run(tmp_path, ids=True))
    assert "Record: inference" in page(read_run(tmp_path, ids=False))


def test_pictures_are_across_the_width_and_asymmetry_has_one_scale_with_a_bar():
    volume = np.zeros((8, 10, 6))
    volume[6, 7, 2] = 1  # on the right, in front
    cases = [{"name": str(k), "image": volume, "mirrored": volume[::-1], "prediction": volume,
              "asymmetry": k * volume} for k in (1, 4)]  # fmt: skip
    figure = mosaic(cases)
    *panels, bar = figure.axes
    assert figure.get_figwidth() == 11
    assert len(panels) == 2 * (4 + 3)  # axial, and coronal but for the mirror image
    assert (bar.get_xlim(), bar.get_xlabel()) == ((0, 4), "asymmetry")
    maps = [panel.images[1] for panel in panels if len(panel.images) == 2]
    assert [image.get_clim() for image in maps] == [(0, 4)] * 4
    axial, coronal = (np.argwhere(image.get_array()).tolist() for image in maps[:2])
    assert (axial, coronal) == ([[2, 1]], [[3, 1]])  # row from the front or the top, column from the right


def test_a_case_is_shown_on_the_plane_in_its_row():
    image = MetaTensor(torch.zeros(1, 20, 20, 20), affine=torch.diag(torch.tensor([4.0, 4.0, 4.0, 1.0])))
    row = {"image": "/a", "plane": "by hand", "plane_yaw_deg": "45", "plane_roll_deg": "0", "plane_offset_mm": "3.5"}
    affine, _ = picture_grid(image, row, True)
    np.testing.assert_allclose(affine[:3, 0] / 4, [0.5**0.5, 0.5**0.5, 0], atol=1e-6)


def test_a_folder_without_a_run_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"sa-swin report: .* holds no run: expected cases.csv"):
        report_command(str(tmp_path))


def test_numbers_are_short_and_words_stay():
    assert [short(v) for v in (0.123456, "0.123456", "12", None, "1.2.3", True)] == [
        "0.1235", "0.1235", "12", "", "1.2.3", "True",
    ]  # fmt: skip
