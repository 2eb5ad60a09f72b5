import json

import pytest
from planted import copy_under_another_name, image_path, make_tree, mask_path

from custom.data.case import CohortError
from sa_swin.cohort.command import build_command, leakage_command
from sa_swin.cohort.leakage import StagePart, compare_lists, severity_of

BUILD = {
    "mask": "label-lesion_mask",
    "target": "diagnosis",
    "classes": "healthy=0,tumour|infarct=1",
    "healthy": "diagnosis=healthy",
}
STAGES = ("pretrain", "classify", "segment")


@pytest.fixture
def tree(tmp_path):
    root = make_tree(tmp_path / "bids")
    build_command(str(root / "datalists"), str(root), **BUILD)
    return root


def lists_of(root):
    return {stage: (root / "datalists" / f"{stage}.json", root) for stage in STAGES}


def change(root, stage, edit):
    path = root / "datalists" / f"{stage}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return content


def summary(leaks):
    return {(leak.subject, leak.held, leak.seen, leak.severity) for leak in leaks}


def test_lists_that_are_built_together_do_not_leak(tree):
    assert compare_lists(lists_of(tree)) == []


def test_folds_that_are_built_together_do_not_leak(tree):
    build_command(str(tree / "folds"), str(tree), folds=4, split=(0.8, 0, 0.2), **BUILD)
    assert compare_lists({stage: (tree / "folds" / f"{stage}.json", tree) for stage in STAGES}) == []


def test_a_test_subject_in_pretraining_is_a_leak(tree):
    subject = json.loads((tree / "datalists" / "classify.json").read_text())["testing"][0]["subject"]

    def move(content):
        (moved,) = [entry for entry in content["testing"] if entry["subject"] == subject]
        content["testing"].remove(moved)
        content["training"].append(moved)

    change(tree, "pretrain", move)
    number = subject.removeprefix("sub-")
    leaks = compare_lists(lists_of(tree))
    assert (number, "classify testing", "pretrain training", "error") in summary(leaks)
    assert {leak.subject for leak in leaks} == {number}
    assert all(leak.how == "subject" for leak in leaks)
    without_labels = compare_lists(lists_of(tree), label_free=True)
    assert {leak.severity for leak in without_labels} == {"warning"}
    assert "without a label" in without_labels[0].problem


def test_a_copy_under_another_name_and_subject_is_a_leak(tree):
    entry = json.loads((tree / "datalists" / "classify.json").read_text())["testing"][0]
    copy = image_path(tree, "sub-77")
    copy.parent.mkdir(parents=True)
    copy_under_another_name(tree / entry["image"], copy)
    stranger = {"image": str(copy.relative_to(tree)), "subject": "sub-77", "healthy": True}
    change(tree, "pretrain", lambda content: content["training"].append(stranger))
    number = entry["subject"].removeprefix("sub-")
    leaks = compare_lists(lists_of(tree))
    assert (number, "classify testing", "pretrain training", "error") in summary(leaks)
    assert {leak.how for leak in leaks} == {str(copy)}
    assert compare_lists(lists_of(tree), images=False) == []  # by names alone nothing is to be seen


@pytest.mark.parametrize(
    ("seen", "held", "labelled", "severity"),
    [
        ("pretrain training", "classify testing", True, "error"),
        ("pretrain training", "classify validation", True, "error"),
        ("pretrain training", "classify training", True, None),
        ("pretrain training", "segment fold 1", True, "error"),
        ("pretrain training", "segment testing", False, "warning"),
        ("pretrain validation", "classify testing", True, "error"),
        ("pretrain validation", "classify validation", True, None),
        ("pretrain testing", "classify testing", True, None),
        ("pretrain fold 1", "classify fold 1", True, None),
        ("pretrain fold 1", "classify fold 2", True, "error"),
        ("pretrain fold 1", "classify validation", True, "error"),
        ("classify training", "classify validation", True, "error"),
        ("classify training", "classify testing", True, "error"),
        ("classify validation", "classify testing", True, "error"),
        ("classify testing", "classify training", True, None),
        ("classify fold 1", "classify fold 2", True, "error"),
        ("classify fold 2", "classify fold 1", True, None),  # said once
        ("classify fold 2", "classify testing", True, "error"),
        ("classify training", "segment testing", True, "warning"),
        ("segment training", "classify validation", True, None),
        ("classify training", "pretrain testing", True, None),
    ],
)
def test_what_is_a_leak(seen, held, labelled, severity):
    parts = [StagePart(*place.split(" ", 1), labelled, ()) for place in (seen, held)]
    assert severity_of(*parts) == severity


def test_the_command_names_the_leaks_and_fails(tree, tmp_path, capsys):
    paths = {stage: str(tree / "datalists" / f"{stage}.json") for stage in STAGES}
    leakage_command(**paths)
    assert "0 leak(s), 0 warning(s)" in capsys.readouterr().out

    def spread(content):
        content["training"] += content["testing"]

    change(tree, "pretrain", spread)
    report = tmp_path / "leaks.json"
    with pytest.raises(SystemExit) as stopped:
        leakage_command(**paths, json=str(report))
    assert stopped.value.code == 1
    out = capsys.readouterr().out
    assert "error: 5 case(s) of classify testing are in pretrain training" in out
    assert "sa-swin cohort build" in out
    assert {leak["seen"] for leak in json.loads(report.read_text())["leaks"]} == {"pretrain training"}
    with pytest.raises(CohortError, match="give the datalists of one or more stages"):
        leakage_command()


def test_masks_are_not_compared(tree):
    mask_path(tree, "sub-02").write_bytes(mask_path(tree, "sub-06").read_bytes())
    assert compare_lists(lists_of(tree)) == []
