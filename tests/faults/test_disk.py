"""A disk that is full, or not there any more, at every place where something is written."""

import contextlib
import csv
import errno
import json
import os
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
import torch
from injected import full_from, no_room, tree
from monai.data import MetaTensor

from custom.evaluation.batch_inference import FinishedCases
from custom.evaluation.case_table import write_csv, write_json
from custom.networks.segmenter import SASwinUNETR
from custom.support.files import WriteError, append, write_whole
from custom.support.run_record import record_run
from custom.volumes.saving import SaveVolumed
from custom.weights.conversion import convert_file
from sa_swin.cohort.command import build_command, check_command
from sa_swin.phantom.cohort import write_subject, write_tables
from sa_swin.phantom.subject import Config, make_subject
from sa_swin.prepare import cohort as prepare
from sa_swin.prepare.contact_sheet import Tile, contact_sheets, save_thumbnail
from sa_swin.release.archive import write_zip
from sa_swin.report import page as report

ROWS = [{"subject": "1", "image": "a.nii.gz", "dice": 0.5, "findings": 3}]
CONFIG = Config(subjects=4, spacing=8.0)


@pytest.fixture(scope="module")
def subject():
    return make_subject(CONFIG, 1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(SASwinUNETR(feature_size=12, window_size=4).state_dict(), path)
    return path


def volume():
    meta = {"filename_or_obj": "/data/a/T1w.nii.gz"}
    return MetaTensor(torch.randn(2, 8, 8, 8), affine=torch.eye(4), meta=meta)


def sheet(folder):
    save_thumbnail(torch.rand(32, 32, 32), folder / "one.png")
    contact_sheets([Tile(folder / "one.png", "a", False)], folder)


def inference_table(folder):
    finished = FinishedCases([{"image": "a.nii.gz"}], folder, folder / "model.pt", {})
    finished.add("a.nii.gz", ROWS[0], [])


SITES = {
    "cases.csv and findings.csv": lambda folder: write_csv(folder / "findings.csv", ROWS),
    "cases.json": lambda folder: write_json(folder / "cases.json", {"metrics": {"dice": 0.5}}),
    "run record": lambda folder: record_run("train", {}, {"output_dir": folder}),
    "finished.jsonl": inference_table,
    "mask and probability map": lambda folder: SaveVolumed("pred", folder, "pred", "/data")({"pred": volume()}),
    "contact sheet": sheet,
    "package": lambda folder: write_zip(folder / "b.zip", "b", {"configs/train.yaml": b"seed: 0" * 100}),
}


def end_to_end(tiny_cohort, weights, subject):
    """The writers that need something to write from."""
    segment = str(tiny_cohort / "datalists" / "segment.json")
    return SITES | {
        "phantom": lambda folder: write_subject(folder, subject),
        "phantom's tables": lambda folder: write_tables(folder, CONFIG, [subject.participant]),
        "converted .pt": lambda folder: convert_file(weights, "segment", folder / "c.pt"),
        "converted .safetensors": lambda folder: convert_file(weights, "segment", folder / "c.safetensors"),
        "datalists": lambda folder: build_command(str(folder), datalist=segment, overwrite=True),
    }


NAMES = [*SITES, "phantom", "phantom's tables", "converted .pt", "converted .safetensors", "datalists"]


@pytest.mark.parametrize("site", NAMES)
def test_without_room_nothing_is_left_and_the_sentence_has_place_reason_and_room(
    site, tiny_cohort, weights, subject, tmp_path
):
    write = end_to_end(tiny_cohort, weights, subject)[site]
    folder = tmp_path / "out"
    sentence = rf"{folder}.* cannot be written: File too large \([\d,.]+ MB free .*; make room there, then run the same"
    with no_room(), pytest.raises(WriteError, match=sentence):
        write(folder)
    assert tree(folder) == {}
    write(folder)
    assert tree(folder)


@pytest.mark.parametrize("site", NAMES)
def test_what_was_there_stays_when_there_is_no_room_for_a_new_one(site, tiny_cohort, weights, subject, tmp_path):
    write = end_to_end(tiny_cohort, weights, subject)[site]
    write(tmp_path)
    before = tree(tmp_path)
    with no_room(), pytest.raises(WriteError):
        write(tmp_path)
    assert tree(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, where this process may mount one."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path):
    """Take all the room that there is."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("site", NAMES)
def test_a_file_system_that_is_full_says_so(site, small_disk, tiny_cohort, weights, subject):
    write = end_to_end(tiny_cohort, weights, subject)[site]
    fill(small_disk / "rest")
    with pytest.raises(WriteError, match=r"No space left on device \(0\.0 MB free"):
        write(small_disk / "out")
    assert set(tree(small_disk)) == {"rest"}


# ---- whole workflows, the disk full from each of their writes on


@pytest.fixture
def two(tiny_cohort, tmp_path):
    """A cohort of two subjects, one with a mask."""
    root = tmp_path / "in"
    cases = [{"image": "sub-0.nii.gz"}, {"image": "sub-1.nii.gz", "label": "sub-1_mask.nii.gz"}]
    root.mkdir()
    for name in ("sub-0.nii.gz", "sub-1.nii.gz"):
        shutil.copy(tiny_cohort / name, root)
    shutil.copy(tiny_cohort / "derivatives" / "sub-1_mask.nii.gz", root)
    (root / "list.json").write_text(json.dumps({"training": cases}))
    return root


def prepared(root, output):
    """Prepare the cohort; the sentence that it ends in, or an empty one when all is done."""
    options = {"spacing": 6.0, "spatial_size": [32, 40, 32], "untrusted": "as_it_lies"}
    try:
        prepare.prepare_command(str(output), str(root), str(root / "list.json"), **options)
    except SystemExit as end:
        return str(end)
    return ""


@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("vanishing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_preparation_stops_at_any_write_and_a_second_run_completes_it(two, tmp_path, monkeypatch, step, vanishing):
    assert prepared(two, tmp_path / "whole") == ""
    expected = tree(tmp_path / "whole")
    number = 1 - step
    while True:
        number += step
        output = tmp_path / f"out_{number}"
        output.mkdir()
        with full_from(number, monkeypatch, output if vanishing else None) as writes:
            sentence = prepared(two, output)
        if len(writes) >= number:
            assert sentence.startswith("sa-swin prepare: /")
            assert " cannot be written: " in sentence
            assert sentence.endswith("run the same command again")
        found = tree(output) if output.exists() else {}
        assert not [name for name in found if ".partial" in name]
        assert found.items() <= expected.items()
        if len(writes) < number:
            break
        assert prepared(two, output) == ""
        assert tree(output) == expected
    assert number > 8


def test_a_file_that_has_gone_is_not_begun_anew(tmp_path):
    """What is left of a run whose file system went away must not look like the whole of it."""
    with pytest.raises(WriteError, match=r"finished.jsonl cannot be written: No such file .*see that its file system"):
        append(tmp_path / "finished.jsonl", "{}\n")
    assert not list(tmp_path.iterdir())


def test_a_line_for_which_there_is_no_room_leaves_the_lines_before_it(tmp_path):
    path = tmp_path / "lines"
    write_whole(path, "first\n")
    with no_room(10), pytest.raises(WriteError, match="File too large"):
        append(path, "the second line\n")
    assert path.read_text() == "first\n"
    append(path, "second\n")
    assert path.read_text() == "first\nsecond\n"


def test_a_place_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file/x.csv cannot be written: (Not a directory|File exists)"):
        write_csv(tmp_path / "file" / "x.csv", ROWS)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_file_system_that_fails_is_named(tmp_path, monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(
        WriteError, match=rf"x.csv cannot be written: {os.strerror(number)} .*may be written to, then run"
    ):
        write_csv(tmp_path / "x.csv", ROWS)
    assert tree(tmp_path) == {}


def test_a_name_that_is_as_long_as_names_may_be_can_be_written(tmp_path):
    path = tmp_path / ("ü" * 125 + ".csv")
    write_csv(path, ROWS)
    assert [path] == list(tmp_path.iterdir())


def test_a_name_that_is_not_utf_8_does_not_lose_the_table(tmp_path):
    write_csv(tmp_path / "cases.csv", [*ROWS, {"subject": "2", "image": os.fsdecode(b"caf\xe9.nii.gz")}])
    with (tmp_path / "cases.csv").open(newline="", encoding="utf-8") as file:
        assert [row["subject"] for row in csv.DictReader(file)] == ["1", "2"]


def test_a_report_without_room_is_one_sentence(tmp_path):
    record_run("train", {}, {"output_dir": tmp_path})
    with no_room(), pytest.raises(SystemExit, match=r"sa-swin report: .*report.html cannot be written: File too large"):
        report.report_command(str(tmp_path))
    assert set(tree(tmp_path)) == {"run_train.json"}


def test_a_check_without_room_is_one_sentence_and_exits_with_2(two, capsys):
    from sa_swin.commands import in_a_sentence

    with no_room(), pytest.raises(SystemExit) as end, in_a_sentence("sa-swin cohort", 2):
        check_command(str(two / "list.json"), workers=1, json=str(two / "report.json"))
    assert end.value.code == 2
    assert "report.json cannot be written: File too large" in capsys.readouterr().err


def test_saved_volumes_carry_voxels_and_affine(tmp_path):
    data = {"pred": volume()}
    SaveVolumed("pred", tmp_path, "pred", "/data")(data)
    image = nib.load(tmp_path / "a" / "T1w_pred.nii.gz")
    np.testing.assert_array_equal(np.moveaxis(image.get_fdata(), -1, 0), data["pred"].numpy())
    assert (image.affine == np.eye(4)).all()
