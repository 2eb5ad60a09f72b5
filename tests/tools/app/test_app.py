import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from asymmetric_heads import SIZE, head

from sa_swin.__main__ import main
from sa_swin.app.scans import AppScan, share

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
AFFINE[:3, 3] = -1.5 * (np.array(SIZE) - 1)  # the head's middle is the world's origin
BESIDE = Path(sys.executable).parent
VALIDATOR = shutil.which("bids-validator-deno", path=f"{BESIDE}{os.pathsep}{os.environ['PATH']}")


def run(*arguments):
    """Exit code of the command."""
    with pytest.raises(SystemExit) as stop:
        main(["app", *map(str, arguments)])
    return stop.value.code


def contents(folder):
    """Every file below a folder, its path and its bytes; of compressed ones those that were compressed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): nib.load(path).to_bytes()
        if path.name.endswith(".nii.gz")
        else path.read_bytes()
        for path in files
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A lesion on the left, the same in a file whose first axis runs to the left, a healthy head with a session."""
    root = tmp_path_factory.mktemp("study")
    (root / "dataset_description.json").write_text(json.dumps({"Name": "three", "BIDSVersion": "1.9.0"}))
    lesion = head(20, lesion=2.0, side=-1)[0, 0].numpy()
    turned = AFFINE @ np.diag([-1.0, 1.0, 1.0, 1.0])
    turned[0, 3] = -AFFINE[0, 3]
    heads = {
        "sub-1/anat/sub-1_T1w.nii.gz": (lesion, AFFINE),
        "sub-2/anat/sub-2_T1w.nii.gz": (lesion[::-1].copy(), turned),
        "sub-3/ses-a/anat/sub-3_ses-a_T1w.nii.gz": (head(21)[0, 0].numpy(), AFFINE),
    }
    for path, (array, affine) in heads.items():
        (root / path).parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(array, affine), root / path)
    return root


@pytest.fixture(scope="module")
def done(study, tmp_path_factory):
    """What the app makes of it without weights."""
    output = tmp_path_factory.mktemp("done")
    assert run(study, output, "participant") == 0
    return output


@pytest.fixture
def spoilt(study, tmp_path):
    """The same study, in which the second head cannot be read."""
    folder = Path(shutil.copytree(study, tmp_path / "spoilt"))
    (folder / "sub-2" / "anat" / "sub-2_T1w.nii.gz").write_text("no image")
    return folder


def summary(output, name, place="anat"):
    subject, *session = name.split("_")
    return json.loads(Path(output, subject, *session, place, f"{name}_desc-summary.json").read_text())


def test_without_weights_there_are_plane_map_and_page(study, done):
    for name in ("sub-1", "sub-2"):
        found = summary(done, name)
        assert found["asymmetry"]["side"] == "left"
        assert np.linalg.norm(np.subtract([found["asymmetry"][f"{axis}_mm"] for axis in "xyz"], [-30, 0, 0])) < 18
        assert {"source", "yaw_deg", "roll_deg", "offset_mm", "similarity"} <= found["plane"].keys()
        mapped, image = (
            nib.load(done / name / "anat" / f"{name}_desc-asymmetry_stat.nii.gz"),
            nib.load(study / name / "anat" / f"{name}_T1w.nii.gz"),
        )
        np.testing.assert_allclose(mapped.affine, image.affine, atol=1e-6)
        assert mapped.shape == image.shape
    assert not list(done.rglob("*dseg*"))


def test_a_dataset_says_what_made_it_and_a_sidecar_what_it_is(done):
    about = json.loads((done / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative"
    assert about["GeneratedBy"][0]["Name"] == "sa-swin"
    beside = json.loads((done / "sub-3/ses-a/anat/sub-3_ses-a_desc-asymmetry_stat.json").read_text())
    assert beside["Sources"] == ["bids:raw:sub-3/ses-a/anat/sub-3_ses-a_T1w.nii.gz"]
    assert beside["SpatialReference"] == "orig"
    assert "texture" in beside["Units"]


def test_a_page_is_small_stands_alone_and_says_research_only(done):
    for name in ("sub-1", "sub-2", "sub-3_ses-a"):
        text = (done / f"{name}.html").read_text()
        assert len(text) < 2e6
        assert "Research only. Not for clinical use." in text
        assert not re.search(r"<script|<link|https?://", text)
        assert {"data:image/png"} == {source[:14] for source in re.findall(r'src="([^"]*)"', text)}


def test_one_bad_person_is_named_and_never_stops_the_others(spoilt, tmp_path, capsys):
    assert run(spoilt, tmp_path / "out", "participant") == 1
    table = capsys.readouterr().out
    assert re.search(r"sub-2 +failed .*sub-2_T1w.nii.gz", table)
    assert "2 of 3 scans done" in table
    assert summary(tmp_path / "out", "sub-3_ses-a")["status"] == "done"
    assert summary(tmp_path / "out", "sub-2")["status"] == "failed"
    assert run(spoilt, tmp_path / "out", "group") == 1
    assert "sub-2_T1w.nii.gz" in (tmp_path / "out" / "group.html").read_text()


def test_only_what_is_missing_is_done_again(study, spoilt, done, tmp_path, capsys):
    output = tmp_path / "out"
    run(spoilt, output, "participant")
    times = {path: path.stat().st_mtime_ns for path in output.glob("sub-[13]*")}
    shutil.copy(study / "sub-2/anat/sub-2_T1w.nii.gz", spoilt / "sub-2/anat/sub-2_T1w.nii.gz")
    capsys.readouterr()
    assert run(spoilt, output, "participant") == 0
    assert re.findall(r"(sub-\S+) +done before", capsys.readouterr().out) == ["sub-1", "sub-3_ses-a"]
    assert times == {path: path.stat().st_mtime_ns for path in output.glob("sub-[13]*")}
    assert {n: c for n, c in contents(output).items() if ".nii" in n} == {
        n: c for n, c in contents(done).items() if ".nii" in n
    }


@pytest.mark.slow
def test_killed_after_any_file_and_started_again_it_comes_to_the_same_end(study, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    label = ("--participant-label", "1")
    assert run(study, whole, "participant", *label) == 0
    import custom.support.files as files

    replace = files.os.replace
    for last in range(3, len(contents(whole))):
        output, written = tmp_path / f"killed_{last}", []

        def stop(source, target, written=written, last=last):
            if len(written) == last:
                raise KeyboardInterrupt
            written.append(target)
            replace(source, target)

        monkeypatch.setattr(files.os, "replace", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            main(["app", str(study), str(output), "participant", *label])
        monkeypatch.setattr(files.os, "replace", replace)
        assert run(study, output, "participant", *label) == 0
        assert contents(output) == contents(whole)


def test_other_settings_do_it_anew_and_leave_nothing_of_before(study, done, tmp_path, capsys):
    output = Path(shutil.copytree(done, tmp_path / "out"))
    stale = output / "sub-1" / "anat" / "sub-1_desc-lesion_dseg.tsv"
    stale.write_text("")
    path = output / "sub-1" / "anat" / "sub-1_desc-summary.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps(known | {"files": [*known["files"], stale.relative_to(output).as_posix()]}))
    capsys.readouterr()
    assert run(study, output, "participant", "--untrusted", "as_it_lies", "--participant-label", "sub-1") == 0
    assert re.search(r"sub-1 +done ", capsys.readouterr().out)
    assert not stale.exists()


def test_results_of_other_images_are_not_replaced(study, done, tmp_path):
    other = Path(shutil.copytree(study, tmp_path / "study"))
    (other / "sub-1" / "anat" / "sub-1_T1w.nii.gz").rename(other / "sub-1" / "anat" / "sub-1_FLAIR.nii.gz")
    output = Path(shutil.copytree(done, tmp_path / "out"))
    before = contents(output / "sub-1")
    told = (
        "holds the results of sub-1/anat/sub-1_T1w.nii.gz, which those of sub-1/anat/sub-1_FLAIR.nii.gz would replace"
    )
    assert told in str(run(other, output, "participant", "--image", "FLAIR"))
    assert contents(output / "sub-1") == before


def test_labels_choose_and_each_share_has_its_own(study, tmp_path):
    assert run(study, tmp_path / "a", "participant", "--session-label", "a") == 0
    assert [path.name for path in (tmp_path / "a").glob("*.html")] == ["sub-3_ses-a.html"]
    scans = [AppScan((f"sub-{i}/anat/sub-{i}_T1w.nii.gz",), f"sub-{i}", "") for i in range(7)]
    parts = [share(scans, f"{i}/3") for i in (1, 2, 3)]
    assert sorted((scan for part in parts for scan in part), key=lambda scan: scan.name) == scans


def test_a_share_without_a_scan_is_done_at_once(study, tmp_path, capsys):
    assert run(study, tmp_path / "out", "participant", "--shard", "7/9") == 0
    assert "0 of 0 scans done" in capsys.readouterr().out


def test_the_group_has_a_row_for_each_scan_and_a_link_to_each_page(done):
    assert run("-", done, "group") == 0
    with (done / "group.tsv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert rows.keys() == {"sub-1", "sub-2", "sub-3_ses-a"}
    assert rows["sub-1"]["side"] == "left"
    assert rows["sub-3_ses-a"]["session"] == "ses-a"
    assert float(rows["sub-1"]["peak"]) > float(rows["sub-3_ses-a"]["peak"])
    text = (done / "group.html").read_text()
    assert all((done / link).is_file() for link in re.findall(r'href="([^"]+)"', text))
    assert len(re.findall("href", text)) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("participants",), 2, "participant, group; got 'participants'"),
        (("participant", "--what", "volume"), 2, "--what takes asymmetry, segment, classify; got volume"),
        (("participant", "--what", "segment"), 2, "--what segment needs --weights"),
        (("participant", "--shard", "4/3"), 2, "--shard takes I/N"),
        (("participant", "--untrusted", "maybe"), 2, "--untrusted takes leave_out, found, as_it_lies; got 'maybe'"),
        (("participant", "--modality", "CT", "--what", "asymmetry"), 2, "is for MR, and this is CT"),
        (("participant", "--participant_lable", "1"), 2, "did you mean --participant_label"),
        (("participant", "--participant-label", "9"), 1, "no T1w image of sub-9"),
        (("participant", "--image", "FLAIR"), 1, "has no FLAIR image; there are T1w (3)"),
        (("participant", "--weights", "nowhere"), 1, "no weights at nowhere"),
        (("group",), 1, "has no results of a scan"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(study, tmp_path, capsys, arguments, code, message):
    found = run(study, tmp_path / "out", *arguments)
    told = capsys.readouterr().err + (found if isinstance(found, str) else "")
    assert message in told
    assert (1 if isinstance(found, str) else found) == code


def test_neither_the_raw_data_nor_another_dataset_is_written_to(study, tmp_path, capsys):
    assert run(study, study, "participant") == 2
    (tmp_path / "dataset_description.json").write_text("{}")
    assert "that sa-swin did not make" in run(study, tmp_path, "participant")


def test_what_somebody_wrote_into_the_folder_stays(study, tmp_path):
    for name in ("README.md", ".bidsignore"):
        (tmp_path / name).write_text("mine")
    for _ in range(2):  # the second time the dataset is ours
        assert run(study, tmp_path, "participant", "--shard", "7/9") == 0
        assert {(tmp_path / name).read_text() for name in ("README.md", ".bidsignore")} == {"mine"}


@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is not installed")
def test_the_validator_of_bids_finds_no_error(done):
    told = subprocess.run([VALIDATOR, str(done), "--format", "json"], capture_output=True, text=True).stdout
    issues = json.loads(told)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
