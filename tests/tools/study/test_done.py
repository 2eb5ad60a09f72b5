"""Whether a result is of the cases as they are now; no volume is read, the records of `prepare` are written here."""

import hashlib
import json

import pytest
import yaml

from sa_swin.study.cohort import make_cohort
from sa_swin.study.done import split_of
from sa_swin.study.plan import Study

PRETRAINED = {"task": "classify", "variant": "plain", "pretraining": "paper"}
ARMS = [{"task": "segment", "variant": "plain"}, {"task": "classify", "variant": "plain"}, PRETRAINED]


@pytest.fixture
def cohort(tmp_path, said_prepared):
    """A prepared cohort in name alone: 4 subjects to segment, which are 4 of the 8 to classify and to pretrain on."""
    folder = tmp_path / "prepared"
    (folder / "datalists").mkdir(parents=True)
    said_prepared(folder, "0.nii")
    entries = [{"image": f"{n}.nii", "healthy": n >= 4, "subject": f"s{n}"} for n in range(8)]
    lists = {
        "pretrain": entries[2:],
        "classify": [entry | {"label": int(not entry["healthy"])} for entry in entries[:6]],
        "segment": [entry | {"label": f"{entry['subject']}_mask.nii"} for entry in entries[:4]],
    }
    for name, own in lists.items():
        (folder / "datalists" / f"{name}.json").write_text(json.dumps({"training": own}))
    return folder


@pytest.fixture
def splits(tmp_path, cohort):
    """A function that gives the digests of the cells' splits by name."""
    content = {"cohort": {"dataset_dir": str(cohort)}, "grid": {"spacing": 6.0, "spatial_size": [32, 64, 64]},
               "settings": {"max_epochs": 1}, "variants": {"plain": {}}, "pretraining": {"paper": {}},
               "arms": ARMS, "folds": 2, "seeds": [0]}  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    study = Study(tmp_path / "study.yaml")
    make_cohort(study, tmp_path / "work", workers=1)
    return lambda: {cell.name: split_of(cell, tmp_path / "work") for cell in study.cells()}


def tell(cohort, number, **contents):
    """Write the record of an aligned image as `sa-swin prepare` does, with the digests of its files."""
    contents = {"aligned_contents": {f"{name}.nii": value for name, value in contents.items()}} if contents else {}
    (cohort / f"{number}.json").write_text(json.dumps({"aligned_affine": [], "settings": {}} | contents))


def changed(before, after):
    return {name.removesuffix(", seed 0") for name in before if before[name] != after[name]}


def test_where_no_record_tells_the_files_the_split_is_that_of_the_datalist_alone(splits, cohort, tmp_path):
    tell(cohort, 0)  # of before 2026-11-29
    path = tmp_path / "work" / "lists" / "aligned" / "fold_1" / "segment.json"
    assert splits()["segment: plain, fold 1, seed 0"] == hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("number", "corrected", "tasks"),
    [
        (0, {"s0_mask": "new"}, {"segment: plain"}),
        (0, {"0": "new"}, {"segment: plain", "classify: plain", "classify: plain, paper pretraining"}),
        (7, {"7": "new"}, {"pretrain: plain, paper pretraining", "classify: plain, paper pretraining"}),
    ],
)
def test_a_corrected_file_makes_another_split_of_the_cells_that_saw_it(splits, cohort, number, corrected, tasks):
    contents = {str(number): "old", f"s{number}_mask": "old"}
    tell(cohort, number, **contents)
    before = splits()
    tell(cohort, number, **contents | corrected)
    assert changed(before, splits()) == {f"{task}, fold {fold}" for task in tasks for fold in (0, 1)}
    tell(cohort, number, **contents)
    assert splits() == before
