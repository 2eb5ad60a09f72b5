import json
import os
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import yaml

from sa_swin.study import cells, evidence
from sa_swin.study.cells import read_cases, run_all, waves
from sa_swin.study.cohort import every, make_cohort
from sa_swin.study.plan import Arm, Study, StudyError, members
from sa_swin.study.summary import collect, compare, is_positive, summarize

ROOT = Path(__file__).resolve().parents[3]
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
RESULTS = sorted((ROOT / "studies" / "results").glob("*.json"))
PLAN = {
    "cohort": {"subjects": 8},
    "grid": {"spacing": 6.0, "spatial_size": [32, 64, 64]},
    "settings": {"feature_size": 12, "window_size": 4, "depths": [1, 1, 1, 1], "warmup_epochs": 0, "max_epochs": 1},
    "classify": {"batch_size": 2},
    "variants": {"plain": {"symmetry": "none"}, "saca": {"symmetry": "saca", "readout": "places"}},
    "pretraining": {"paper": {"objective": "paper"}},
    "controls": {"wrong_axis": {"kind": "wrong_axis"}, "unaligned": {"align": False}},
    "groups": {"unilateral": {"side": ["left"]}},
    "seeds": [0, 1],
    "arms": [{"task": "classify", "variant": ["plain", "saca"]}],
}


def study(tmp_path, **changes):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(PLAN | changes))
    return Study(path)


def test_a_block_is_the_product_of_its_lists(tmp_path):
    plan = study(tmp_path, arms=[{"task": "classify", "variant": ["plain", "saca"], "label_percent": [10, 100]}])
    assert [arm.name for arm in plan.arms] == ["plain, 10 % of labels", "plain", "saca, 10 % of labels", "saca"]
    assert len(plan.cells()) == 4 * 2


def test_a_pretraining_is_run_once_for_all_that_start_from_it_and_before_them(tmp_path):
    arms = [
        {"task": "classify", "variant": "saca", "pretraining": "paper", "label_percent": [10, 100]},
        {"task": "pretrain", "variant": "saca", "pretraining": "paper"},
    ]
    cells = study(tmp_path, arms=arms, seeds=[0]).cells()
    assert [cell.arm.task for cell in cells] == ["pretrain", "classify", "classify"]
    assert {cell.start.digest for cell in cells[1:]} == {cells[0].digest}
    assert [len(wave) for wave in waves(cells)] == [1, 2]


def test_what_changes_the_run_changes_the_digest_and_a_name_does_not(tmp_path):
    def digests(**changes):
        plan = study(tmp_path, **changes)
        return [plan.cell(arm, 0).digest for arm in plan.arms]

    first = digests()
    assert len(set(first)) == 2
    renamed = {"a": PLAN["variants"]["plain"], "b": PLAN["variants"]["saca"]}
    assert digests(variants=renamed, arms=[{"task": "classify", "variant": ["a", "b"]}]) == first
    assert not set(digests(classify={"batch_size": 3})) & set(first)
    assert not set(digests(cohort={"subjects": 9})) & set(first)
    controlled = [{"task": "classify", "variant": "saca", "control": ["wrong_axis", "unaligned"]}]
    assert len({*digests(arms=controlled), *first}) == 4


def test_a_pretrained_cell_is_another_when_its_pretraining_is(tmp_path):
    arms = [{"task": "classify", "variant": "saca", "pretraining": "paper"}]
    one = study(tmp_path, arms=arms).cells()[-1].digest
    assert study(tmp_path, arms=arms, pretrain={"margin": 0.5}).cells()[-1].digest != one


def test_a_variants_setting_does_not_reach_the_bundles_that_have_none(tmp_path):
    plan = study(tmp_path, variants={"plain": {}, "saca": {"augmentation": "deep"}})
    assert plan.cell(Arm("segment", "saca"), 3).settings["augmentation"] == "deep"
    assert "augmentation" not in plan.cell(Arm("classify", "saca"), 3).settings
    assert plan.cell(Arm("segment", "saca"), 3).settings["seed"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": [{"task": "classify", "variant": "swin"}]}, "unknown variant 'swin', the study names plain, saca"),
        ({"arms": [{"task": "classify"}]}, "an arm has task, variant, .*; look at variant"),
        ({"arms": [{"task": "pretrain", "variant": "saca"}]}, "an arm of task pretrain needs a pretraining"),
        ({"arms": [{"task": "guess", "variant": "saca"}]}, "task must be one of .*, got guess"),
        ({"variant": {}}, "a study has cohort, grid, arms, and further"),
        (
            {"comparisons": [{"task": "classify", "arm": {"variant": "saca", "control": "unaligned"},
                              "against": {"variant": "saca"}}]},
            "a comparison with saca, unaligned, which is no arm of the study",
        ),
        (
            {"comparisons": [{"task": "classify", "arm": {"variant": "saca"}, "against": {"variant": "plain"},
                              "group": "left-handed"}]},
            "unknown group 'left-handed', the study names unilateral",
        ),
    ],
)  # fmt: skip
def test_a_study_that_makes_no_sense_is_refused(tmp_path, changes, message):
    with pytest.raises(StudyError, match=message):
        study(tmp_path, **changes)


def test_a_setting_that_the_bundle_does_not_have_is_refused(tmp_path):
    plan = study(tmp_path, classify={"roi_size": [32, 32, 32]})
    with pytest.raises(StudyError, match="the bundle classify has no setting roi_size"):
        plan.cells()


def test_a_variant_with_a_setting_that_no_bundle_has_is_refused(tmp_path):
    plan = study(tmp_path, variants={"plain": {"symetry": "none"}, "saca": {}})
    with pytest.raises(StudyError, match="variant plain: no bundle has a setting symetry"):
        plan.cells()


def test_a_share_of_the_labels_has_its_own_number_of_epochs_where_the_study_names_one(tmp_path):
    plan = study(tmp_path, label_epochs={10: 7})
    epochs = {percent: plan.cell(Arm("classify", "saca", label_percent=percent), 0).settings["max_epochs"]
              for percent in (10, 30, 100)}  # fmt: skip
    assert epochs == {10: 7, 30: 1, 100: 1}
    assert json.loads(json.dumps(plan.content)) == plan.content


def test_a_group_is_its_patients_and_all_the_healthy():
    facts = {
        "a": {"healthy": True, "side": "n/a"},
        "b": {"healthy": False, "side": "left"},
        "c": {"healthy": False, "side": "both"},
    }
    assert members(facts, {"side": ["left", "right"]}) == {"a", "b"}
    assert members(facts, None) == {"a", "b", "c"}


def test_what_a_classification_looks_for_is_its_class_1_whoever_is_healthy():
    truths = [is_positive("classify", {"healthy": healthy, "label": label}) for healthy in (0, 1) for label in (0, 1)]
    assert truths == [False, True, False, True]
    assert [is_positive("pretrain", {"healthy": healthy, "label": 0}) for healthy in (True, False)] == [False, True]


def test_a_subjects_scans_count_as_their_mean(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("subject,dice\na,0.5\nb,0.25\na,1.0\n")
    assert read_cases(path, "dice") == {"a": 0.75, "b": 0.25}


def test_a_case_without_a_score_is_an_error(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("subject,dice\na,0.5\nb,\n")
    with pytest.raises(ValueError, match="no dice of b"):
        read_cases(path, "dice")


@pytest.fixture(scope="module")
def finished(tiny_cohort, tmp_path_factory, said_prepared):
    """The work of a study of two arms and one seed on the tiny cohort, and the study."""
    folder = tmp_path_factory.mktemp("work")
    cohort = shutil.copytree(tiny_cohort, folder / "prepared")
    path = cohort / "datalists" / "classify.json"
    lists = json.loads(path.read_text())
    said_prepared(cohort, next(iter(every(lists)))["image"])
    for entry in (entry for entries in lists.values() for entry in entries):
        entry |= {"side": "n/a" if entry["healthy"] else "left", "diagnosis": "x"}
    path.write_text(json.dumps(lists))
    arms = [
        {"task": "classify", "variant": ["plain", "saca"]},
        {"task": "classify", "variant": "saca", "control": "wrong_axis"},
    ]
    comparisons = [{"task": "classify", "arm": {"variant": "saca"}, "against": {"variant": "plain"}}]
    plan = study(folder, arms=arms, seeds=[0], comparisons=comparisons, cohort={"dataset_dir": str(cohort)})
    make_cohort(plan, folder, workers=1)
    return plan, folder, {cell.name: why for cell, why in run_all(plan.cells(), folder, ["cpu"], 1)}


def test_every_cell_leaves_a_score_for_each_test_subject(finished, tiny_cohort):
    plan, folder, outcome = finished
    assert set(outcome.values()) == {None}
    lists = json.loads((tiny_cohort / "datalists" / "classify.json").read_text())
    testing = {entry["subject"] for entry in lists["testing"]}
    for cell in plan.cells():
        cases = json.loads((folder / "cells" / cell.digest / "result.json").read_text())["cases"]
        assert set(cases) == testing
        assert all(0 < value < 1 for value in cases.values())


def test_a_finished_cell_is_not_run_again_and_an_unfinished_one_is(finished):
    plan, folder, _ = finished
    first, second, *_ = plan.cells()
    paths = [folder / "cells" / cell.digest / "models" / "model.pt" for cell in (first, second)]
    before = [path.stat().st_mtime_ns for path in paths]
    scores = (folder / "cells" / second.digest / "result.json").read_text()
    (folder / "cells" / second.digest / "result.json").unlink()
    assert set(dict(run_all([first, second], folder, ["cpu"], 1)).values()) == {None}
    after = [path.stat().st_mtime_ns for path in paths]
    assert before[0] == after[0]
    assert before[1] < after[1]
    again = json.loads((folder / "cells" / second.digest / "result.json").read_text())
    assert again["cases"] == json.loads(scores)["cases"]  # the same settings and seed give the same scores


def test_a_cell_of_another_split_is_run_again_and_until_then_is_missing(finished):
    plan, folder, _ = finished
    first = plan.cells()[0]
    path = folder / "cells" / first.digest / "result.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps(before | {"split": "of other subjects", "cases": {}}))
    assert collect(plan, folder)["missing"] == [first.name]
    assert set(dict(run_all([first], folder, ["cpu"], 1)).values()) == {None}
    again = json.loads(path.read_text())
    assert (again["split"], again["cases"]) == (before["split"], before["cases"])


@dataclass(frozen=True)
class Stand:
    """In place of a cell."""

    name: str
    digest: str = "x"
    start: None = None


def killed(cell, *_, **__):
    """In place of an attempt: of one cell the process is killed, the others end well."""
    if cell.name == "bad":
        os._exit(9)


def test_a_process_that_is_killed_loses_its_own_cell_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(cells, "attempt", killed)
    monkeypatch.setattr(cells, "processes", lambda number: ProcessPoolExecutor(number, get_context("fork")))
    outcome = {cell.name: why for cell, why in run_all([Stand("a"), Stand("bad"), Stand("b")], tmp_path, ["cpu"], 2)}
    assert (outcome["a"], outcome["b"]) == (None, None)
    assert "its process was killed" in outcome["bad"]


def test_a_group_in_which_nobody_is_ill_is_left_out(finished):
    plan, folder, _ = finished
    plan.content["groups"] = {"nobody": {"side": ["midline"]}}
    plan.comparisons.append((*plan.comparisons[0][:2], "nobody"))
    summary = summarize(plan, collect(plan, folder))
    plan.content["groups"], _ = {}, plan.comparisons.pop()
    assert {row["group"] for row in summary["arms"]} == {"all"}
    assert len(summary["comparisons"]) == 1


def test_a_control_changes_the_scores(finished):
    plan, folder, _ = finished
    collected = {arm["name"]: arm for arm in collect(plan, folder)["arms"]}
    assert collected["saca"]["scores"] != collected["saca, wrong_axis"]["scores"]


def test_reflected_brains_are_measured_where_there_is_no_control(finished):
    plan, folder, _ = finished
    collected = {arm["name"]: arm for arm in collect(plan, folder)["arms"]}
    assert {name for name, arm in collected.items() if "reflected" in arm} == {"plain", "saca"}
    rows = {row["arm"]: row for row in summarize(plan, collect(plan, folder))["arms"] if row["group"] == "all"}
    by_hand = np.abs(np.subtract(collected["plain"]["scores"], collected["plain"]["reflected"])).mean()
    assert rows["plain"]["inconsistency"] == pytest.approx(by_hand)
    assert by_hand > 0


def test_the_normative_score_is_one_cell_for_all_seeds_and_needs_no_training(finished):
    plan, folder, _ = finished
    plan.named["variant"]["image"] = {}
    arm = Arm("normative", "image")
    cells = [plan.cell(arm, seed) for seed in (0, 1)]
    assert cells[0].digest == cells[1].digest
    assert [why for _, why in run_all(cells, folder, ["cpu"], 1)] == [None, None]
    home = folder / "cells" / cells[0].digest
    assert len(json.loads((home / "result.json").read_text())["cases"]) == 2
    assert not (home / "models").exists()


def test_one_bad_cell_does_not_lose_the_others(finished, tmp_path):
    plan, folder, _ = finished
    bad = plan.cell(Arm("classify", "plain"), 0)
    bad = replace(bad, seed=5, settings={**bad.settings, "batch_size": -1})
    reasons = [why for _, why in run_all([bad, plan.cells()[0]], folder, ["cpu"], 1)]
    assert "batch_size" in reasons[0]
    assert reasons[1] is None


def test_an_arm_is_measured_by_the_seeds_that_have_run_and_the_others_are_named(finished):
    plan, folder, _ = finished
    plan.content["seeds"] = [0, 1]
    collected = collect(plan, folder)
    plan.content["seeds"] = [0]
    assert [arm["seeds"] for arm in collected["arms"]] == [[0], [0], [0]]
    assert collected["missing"] == [f"classify: {name}, seed 1" for name in ("plain", "saca", "saca, wrong_axis")]


def test_arms_are_compared_over_the_seeds_that_both_have():
    facts = {name: {"healthy": name in "ab"} for name in "abcd"}
    right, wrong = [0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1]
    arm = {"task": "classify", "name": "x", "subjects": list("abcd")}
    one = arm | {"seeds": [0, 1, 2], "scores": [right, wrong, right]}
    two = arm | {"seeds": [1, 2], "scores": [right, right]}
    row = compare(one, two, facts, None)
    assert (row["difference"], row["seeds"], row["n"]) == (-0.5, 2, 4)
    assert (row["value"], row["other"]) == (0.5, 1.0)  # not the 2/3 of all its seeds


def test_arms_on_different_cases_are_not_compared():
    facts = {"a": {"healthy": True}, "b": {"healthy": False}, "c": {"healthy": False}}
    arm = {"task": "classify", "name": "x", "seeds": [0], "subjects": ["a", "b"], "scores": [[0.1, 0.2]]}
    with pytest.raises(ValueError, match="measured on different cases"):
        compare(arm, arm | {"subjects": ["a", "c"]}, facts, None)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_committed_study_is_sound(path):
    study = Study(path)
    if "commit" not in study.content:
        assert study.cells()
        return
    with pytest.raises(StudyError, match=f"is of commit {study.content['commit']}, this is .*; check that one out"):
        study.cells()


@pytest.mark.parametrize(
    "path", [RESULTS[0], *(pytest.param(path, marks=pytest.mark.slow) for path in RESULTS[1:])], ids=lambda p: p.stem
)
def test_the_committed_figures_are_those_of_the_committed_scores(path, tmp_path):
    content = json.loads(path.read_text())
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content["study"], sort_keys=False))
    made = summarize(Study(tmp_path / "study.yaml"), content)
    assert json.loads(json.dumps(made)) == content["summary"]


def test_the_committed_study_files_are_those_of_the_committed_results():
    for path in RESULTS:
        assert Study(ROOT / "studies" / f"{path.stem}.yaml").content == json.loads(path.read_text())["study"]


def test_the_page_of_evidence_is_what_the_committed_results_make():
    assert (ROOT / "docs" / "evidence.md").read_text() == evidence.page(evidence.read(ROOT / "studies" / "results"))


def test_every_plot_of_the_page_is_there():
    for name in re.findall(r"\((evidence/.*?\.svg)\)", (ROOT / "docs" / "evidence.md").read_text()):
        assert (ROOT / "docs" / name).is_file()


def test_the_json_reads_back_as_it_was(finished):
    plan, folder, _ = finished
    collected = collect(plan, folder)
    content = collected | {"summary": summarize(plan, collected)}
    assert json.loads(evidence.dumps(content)) == json.loads(json.dumps(content))
    assert np.isfinite(content["summary"]["comparisons"][0]["difference"])


def test_other_weights_under_the_same_name_are_another_run_and_missing_ones_are_named(tmp_path):
    from sa_swin.study.cells import pretrained
    from sa_swin.study.plan import StudyError, file_digest

    weights = tmp_path / "weights.safetensors"
    variants = {"a": {"symmetry": "saca", "pretrained": str(weights)}}

    def cell():
        file_digest.cache_clear()
        plan = study(tmp_path, variants=variants, arms=[{"task": "classify", "variant": "a"}])
        return plan.cell(plan.arms[0], 0)

    with pytest.raises(StudyError, match="no weights"):
        cell().digest  # noqa: B018  asked for its error
    weights.write_bytes(b"one")
    first = cell().digest
    assert cell().digest == first
    weights.write_bytes(b"other")
    assert cell().digest != first
    assert pretrained(cell(), tmp_path) == str(weights)
