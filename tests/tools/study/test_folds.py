import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import yaml

from sa_swin.study import command, worth
from sa_swin.study.cohort import Cohort, every, kind, make_cohort, order, read_lists, together
from sa_swin.study.command import run_worth
from sa_swin.study.plan import Study, StudyError, meets
from sa_swin.study.summary import facts_of

GRID = {"spacing": 6.0, "spatial_size": [32, 64, 64]}


def first_of(path):
    """The first image of a datalist."""
    return next(iter(every(read_lists(path))))["image"]


@pytest.fixture
def cohort(tmp_path, said_prepared):
    """A prepared cohort of 12 subjects in name alone: lists of persons, two of whom were scanned twice."""
    folder = tmp_path / "prepared"
    (folder / "datalists").mkdir(parents=True)
    said_prepared(folder, "0.nii")
    entries = [
        {"image": f"{n}.nii", "label": f"{n}_mask.nii", "subject": f"s{n}", "side": "left" if n % 2 else "right",
         "person": f"p{n % 10}", "lesion_ml": n + 0.5}
        for n in range(12)
    ]  # fmt: skip
    lists = {
        "training": entries[:8],
        "validation": entries[8:10],
        "testing": entries[10:],
        "left_out": [{"subject": "x"}],
    }
    (folder / "datalists" / "segment.json").write_text(json.dumps(lists))
    return folder


def plan(tmp_path, cohort, group="person", **changes):
    content = {"cohort": {"dataset_dir": str(cohort), "group": group}, "grid": GRID, "folds": 3, "arms": []}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return Study(path)


def folds_of(study, folder):
    make_cohort(study, folder, workers=1)
    return [read_lists(folder / "lists" / "aligned" / f"fold_{fold}" / "segment.json") for fold in study.folds]


def test_every_subject_is_tested_once_and_never_trained_on_in_that_fold(tmp_path, cohort):
    lists = folds_of(plan(tmp_path, cohort), tmp_path / "work")
    tested = [entry["subject"] for own in lists for entry in own["testing"]]
    assert sorted(tested) == sorted(f"s{n}" for n in range(12))
    for own in lists:
        parts = [{entry["subject"] for entry in own[part]} for part in ("training", "validation", "testing")]
        assert len(set().union(*parts)) == sum(map(len, parts)) == 12
        assert all(parts)
        assert {"left", "right"} == {entry["side"] for entry in own["testing"]}


def test_the_two_scans_of_a_person_are_tested_in_one_fold(tmp_path, cohort):
    for own in folds_of(plan(tmp_path, cohort), tmp_path / "work"):
        persons = {entry["person"] for entry in own["testing"]}
        rest = {entry["person"] for entry in own["training"] + own["validation"]}
        assert not persons & rest


def test_a_column_that_should_keep_subjects_together_must_be_there(tmp_path, cohort):
    study = plan(tmp_path, cohort, group="family")
    with pytest.raises(StudyError, match=r"group family: no such column in the datalists' entries; add it"):
        make_cohort(study, tmp_path / "work", workers=1)


def test_who_has_no_value_in_that_column_is_kept_together_with_nobody():
    entries = {"a": {"family": "x"}, "b": {}, "c": {"family": "x"}, "d": {}}
    assert together(["family"], entries) == [["a", "c"]]


def test_what_the_datalists_were_split_by_keeps_subjects_together_unasked(tmp_path, cohort):
    path = cohort / "datalists" / "segment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"built": {"group": "person"}}))
    assert Cohort({"dataset_dir": str(cohort)}, tmp_path).group == ["person"]
    assert Cohort({"dataset_dir": str(cohort), "group": "site,person"}, tmp_path).group == ["site", "person"]


def test_the_folders_of_a_study_have_the_names_that_its_datalists_have(tmp_path, cohort, tiny_cohort, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert str(Cohort({"dataset_dir": "../prepared"}, tmp_path).raw) == str(cohort)
    folders = []

    def stop(study, folder, *rest):
        folders.append(str(folder))
        raise StudyError("seen")

    monkeypatch.setattr(command, "run_study", stop)
    plan(tmp_path, cohort)
    with pytest.raises(SystemExit, match="seen"):
        command.run(str(tmp_path / "study.yaml"), "../work")
    with pytest.raises(SystemExit, match="seen"):
        command.run_worth("../work", str(tiny_cohort))
    assert folders == [str(tmp_path / "work")] * 2


def test_every_part_has_some_with_a_mask_where_few_have_one(tmp_path, cohort):
    entries = [{"image": f"{n}.nii", "healthy": n >= 6, "subject": f"s{n}", "person": n} for n in range(60)]
    masks = [entry | {"label": f"{entry['subject']}_mask.nii"} for entry in entries[:6]]
    for name, own in (("pretrain", entries), ("segment", masks)):
        (cohort / "datalists" / f"{name}.json").write_text(json.dumps({"training": own}))
    for own in folds_of(plan(tmp_path, cohort), tmp_path / "work"):
        assert [len(own[part]) for part in ("training", "validation", "testing")] == [3, 1, 2]


def test_a_few_without_a_mask_leave_the_others_to_train(tmp_path, cohort):
    entries = [{"image": f"{n}.nii", "healthy": False, "subject": f"s{n}", "person": n} for n in range(60)]
    masks = [entry | {"label": f"{entry['subject']}_mask.nii"} for entry in entries[3:]]
    for name, own in (("pretrain", entries), ("segment", masks)):
        (cohort / "datalists" / f"{name}.json").write_text(json.dumps({"training": own}))
    for own in folds_of(plan(tmp_path, cohort), tmp_path / "work"):
        assert [len(own[part]) for part in ("training", "validation", "testing")] == [34, 4, 19]


def test_planes_set_by_hand_in_a_cohort_do_not_make_it_an_aligned_one(tmp_path, cohort):
    (cohort / "0.json").unlink()
    (cohort / "planes.csv").write_text("image,yaw_deg,roll_deg,offset_mm\n")
    assert Cohort({"dataset_dir": str(cohort)}, tmp_path).aligned == tmp_path / "aligned"


def test_a_person_of_two_classes_is_refused(tmp_path, cohort):
    entries = [{"image": f"{n}.nii", "label": int(n == 7), "subject": f"s{n // 2}", "person": n} for n in range(12)]
    (cohort / "datalists" / "classify.json").write_text(json.dumps({"training": entries}))
    with pytest.raises(StudyError, match=r"classify.json: s3 has scans of classes 0 and 1, but every subject"):
        make_cohort(plan(tmp_path, cohort), tmp_path / "work", workers=1)


def test_the_work_in_some_folds_is_not_taken_for_that_in_others(tmp_path, cohort):
    make_cohort(plan(tmp_path, cohort), tmp_path / "work", workers=1)
    with pytest.raises(StudyError, match="or other folds"):
        make_cohort(plan(tmp_path, cohort, folds=4), tmp_path / "work", workers=1)
    own = tmp_path / "work" / "cohort_of_study.json"
    own.write_text(json.dumps({key: value for key, value in json.loads(own.read_text()).items() if key != "folds"}))
    make_cohort(plan(tmp_path, cohort), tmp_path / "work", workers=1)  # of before folds were told


def test_several_scans_of_a_person_make_no_more_steps(cohort):
    path = cohort / "datalists" / "segment.json"
    once = worth.content("segment", str(cohort), GRID, {}, 400, 3, 3)["segment"]["max_epochs"]
    lists = json.loads(path.read_text())
    path.write_text(json.dumps({name: 4 * entries for name, entries in lists.items()}))
    assert worth.content("segment", str(cohort), GRID, {}, 400, 3, 3)["segment"]["max_epochs"] == once / 4 == 25


def test_a_classifier_of_mr_is_studied_with_the_map_that_it_sees_by_default(cohort):
    entries = [{"image": f"sub-{n}_T1w.nii", "label": n % 2, "subject": f"s{n}"} for n in range(12)]
    for path, mapped in (("classify.json", True), ("segment.json", None)):
        if mapped:
            (cohort / "datalists" / path).write_text(json.dumps({"training": entries}))
        content = worth.content(path.split(".")[0], str(cohort), GRID, {}, 400, 3, 3)
        assert content["variants"]["saca"].get("asymmetry_map") is mapped
        assert all("asymmetry_map" not in own for name, own in content["variants"].items() if name != "saca")


def test_who_is_studied_is_told_by_side_or_class():
    entries = [{"healthy": True}, {"side": "left"}, {"side": "both"}, {"label": 1}, {"label": "mask.nii"}]
    kinds = [kind(entry) for entry in entries]
    assert kinds == ["healthy", "one-sided", "bilateral", "class 1", "patients"]
    assert [order(kind) for kind in kinds] == sorted(order(kind) for kind in kinds)


def test_the_work_on_one_cohort_is_not_taken_for_that_on_another(tmp_path, cohort):
    make_cohort(plan(tmp_path, cohort), tmp_path / "work", workers=1)
    other = shutil.copytree(cohort, tmp_path / "other")
    with pytest.raises(StudyError, match="holds the work on another cohort"):
        make_cohort(plan(tmp_path, other), tmp_path / "work", workers=1)


def test_an_aligned_cohort_has_no_unaligned_arm(tmp_path, cohort):
    changes = {"variants": {"plain": {}}, "controls": {"unaligned": {"align": False}},
               "segment": {"max_epochs": 1},
               "arms": [{"task": "segment", "variant": "plain", "control": "unaligned"}]}  # fmt: skip
    with pytest.raises(StudyError, match="is aligned already"):
        make_cohort(plan(tmp_path, cohort, **changes), tmp_path / "work", workers=1)


def test_the_cohort_itself_is_not_written_to(tmp_path, cohort):
    before = {path: path.stat().st_mtime_ns for path in cohort.rglob("*")}
    make_cohort(plan(tmp_path, cohort), tmp_path / "work", workers=1)
    assert before == {path: path.stat().st_mtime_ns for path in cohort.rglob("*")}


def test_facts_are_of_all_subjects_who_are_patients_unless_said_to_be_healthy(tmp_path, cohort):
    study = plan(tmp_path, cohort)
    make_cohort(study, tmp_path / "work", workers=1)
    facts = facts_of(study, tmp_path / "work")
    assert facts["s3"] == {"healthy": False, "side": "left", "lesion_ml": 3.5}
    assert len(facts) == 12


def test_bounds_of_a_number_hold_its_lower_end_and_not_its_upper():
    assert [meets(value, {"from": 3, "below": 10}) for value in (2.9, 3.0, 9.9, 10.0, None)] == [
        False, True, True, False, False,
    ]  # fmt: skip


def test_one_fold_is_refused(tmp_path, cohort):
    with pytest.raises(StudyError, match=r"folds must be 0 .* or at least 2, got 1"):
        plan(tmp_path, cohort, folds=1)


@pytest.mark.parametrize(
    ("task", "message"),
    [("pretrain", "task must be one of segment, classify"), ("classify", "no .*classify.json; make")],
)
def test_the_ready_study_says_what_it_lacks(cohort, task, message):
    with pytest.raises(StudyError, match=message):
        worth.content(task, str(cohort), GRID, {}, 400, 3, 3)


@pytest.mark.parametrize(("folds", "seeds"), [(0, 3), (1, 3), (3, 0)])
def test_the_ready_study_needs_folds_and_seeds(cohort, folds, seeds):
    with pytest.raises(StudyError, match=f"2 folds or more, and 1 seed or more; got {folds} and {seeds}"):
        worth.content("segment", str(cohort), GRID, {}, 400, folds, seeds)


@pytest.mark.parametrize(
    ("ending", "allow_outside", "further"),
    [(".nii", False, {}), ("_T1w.nii", False, {}), ("_CT.nii", False, {"modality": "CT"}),
     (".nii", True, {"allow_outside": True})],
)  # fmt: skip
def test_the_ready_study_takes_ct_by_its_names_and_leaves_the_cells_of_mr_as_they_were(
    cohort, ending, allow_outside, further
):
    path = cohort / "datalists" / "segment.json"
    path.write_text(path.read_text().replace('.nii", "label', f'{ending}", "label'))
    content = worth.content("segment", str(cohort), GRID, {}, 400, 3, 3, allow_outside)
    usual = {"feature_size", "window_size", "depths", "num_heads", "warmup_epochs", "learning_rate"}
    assert {name: value for name, value in content["settings"].items() if name not in usual} == further


@pytest.mark.parametrize("option", ["spatial_size", "roi_size"])
def test_a_size_of_the_ready_study_is_one_number_or_three(tmp_path, tiny_cohort, option):
    for size in ((64, 64), (64, 0, 64)):
        with pytest.raises(SystemExit, match=f"{option} must be one or three numbers of voxels"):
            command.run_worth(str(tmp_path), str(tiny_cohort), **{option: size})
    assert command.voxels(option, 64) == [64, 64, 64]


def test_files_outside_are_studied_where_that_is_allowed(tmp_path, tiny_cohort, monkeypatch):
    cohort = shutil.copytree(tiny_cohort, tmp_path / "cohort")
    mask = cohort / every(read_lists(cohort / "datalists" / "segment.json"))[0]["label"]
    mask.symlink_to(shutil.move(mask, tmp_path / "elsewhere.nii.gz"))
    prepared = []

    def stop(**options):
        prepared.append(options["allow_outside"])
        raise StudyError("seen")

    monkeypatch.setattr("sa_swin.prepare.cohort.prepare_command", stop)
    with pytest.raises(SystemExit, match="lies outside of"):
        command.run_worth(str(tmp_path / "work"), str(cohort))
    for allowed, task in ((True, "segment"), (False, "classify")):
        with pytest.raises(SystemExit, match="seen"):
            command.run_worth(str(tmp_path / task), str(cohort), task, allow_outside=allowed)
    assert prepared == [True, False]
    cells = Study(tmp_path / "segment" / "worth.yaml").cells()
    assert all(cell.settings["allow_outside"] for cell in cells)


def test_the_ready_study_trains_for_about_the_steps_that_were_asked_for(cohort):
    content = worth.content("segment", str(cohort), GRID, {}, 400, 3, 3)
    assert content["segment"]["max_epochs"] == 100  # 8 of 12 subjects in batches of 2 are 4 steps


def test_the_ready_study_refuses_masks_of_several_classes_before_anything_is_trained(tiny_cohort, tmp_path):
    cohort = shutil.copytree(tiny_cohort, tmp_path / "prepared")
    worth.refuse_classes(cohort)
    entry = every(read_lists(cohort / "datalists" / "segment.json"))[0]
    mask = nib.load(cohort / entry["label"])
    values = np.asarray(mask.dataobj).copy()
    values[0, 0, 0] = 2
    nib.save(nib.Nifti1Image(values, mask.affine), cohort / entry["label"])
    with pytest.raises(StudyError, match=r"masks of 0 and 1, found 2; join the classes, or write a study file"):
        worth.refuse_classes(cohort)


def result(difference, low, high, q, seeds=3):
    arms = [{"task": "segment", "arm": arm, "group": "all", "value": value, "low": 0, "high": 1, "n": 9, "seconds": 1.0,
             "seeds": [value]} for arm, value in (("saca", 0.5 + difference), ("plain", 0.5))]  # fmt: skip
    row = {"task": "segment", "arm": "saca", "against": "plain", "group": "all", "n": 9, "seeds": seeds, "p": q, "q": q,
           "difference": difference, "low": low, "high": high}  # fmt: skip
    study = {"folds": 3, "seeds": [0], "cohort": {"dataset_dir": "C"}}
    sizes = {"in turn": {"one-sided": 9}, "training in the first": {"one-sided": 5}}
    return {"study": study, "sizes": sizes, "missing": [], "summary": {"arms": arms, "comparisons": [row]}}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((0.1, 0.05, 0.15, 0.01), "Yes: Dice 0.600 with the mirrored counterpart, 0.500 without; difference +0.100"),
        ((0.1, -0.05, 0.15, 0.01), "Not shown: Dice"),
        ((-0.1, -0.15, -0.05, 0.01), "No, it costs: Dice 0.400"),
        ((0.1, 0.05, 0.15, 0.2), "Not shown: Dice"),
        ((0.1, 0.05, 0.15, 0.01, 2), "Too few trainings to tell (run it with --seeds 3): Dice 0.600"),
    ],
)
def test_the_verdict_is_a_sentence_that_needs_interval_and_q(tmp_path, row, words):
    assert worth.verdict(result(*row)).startswith(words)
    page = worth.write_page(result(*row), tmp_path).read_text()
    assert words in page
    assert "`C`: 9 one-sided. Every subject" in page
    assert "saca against plain" in (tmp_path / "worth.svg").read_text()


@pytest.mark.slow
def test_the_ready_study_runs_on_a_cohort_and_goes_on_where_it_stopped(tiny_cohort, tmp_path, capsys, said_prepared):
    cohort = shutil.copytree(tiny_cohort, tmp_path / "prepared")
    said_prepared(cohort, first_of(cohort / "datalists" / "classify.json"))  # the list that is looked at first
    options = {"work": str(tmp_path / "work"), "dataset_dir": str(cohort), "spacing": 6.0, "spatial_size": (32, 64, 64),
               "roi_size": (32, 64, 32), "steps": 2, "folds": 2, "seeds": 1}  # fmt: skip
    run_worth(**options, only="plain")
    assert "Not known yet: 10 trainings are missing" in capsys.readouterr().out
    run_worth(**options)
    page = (tmp_path / "work" / "worth.md").read_text()
    for arm in ("plain", "channel", "saca", "baseline", "saca, other subject", "saca, wrong axis"):
        assert f"| {arm} | 0." in page
    assert "not for clinical use" in page
    assert capsys.readouterr().out.rstrip().endswith("n = 4.")
