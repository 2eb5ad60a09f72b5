import csv
import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from custom.data.case import CohortError
from sa_swin.__main__ import main
from sa_swin.cohort import dicom
from sa_swin.cohort.bids import find_scans
from sa_swin.cohort.bids_facts import subject_facts
from sa_swin.cohort.dicom import Series, chosen_series, import_dicom, kind_of, person_folders
from sa_swin.cohort.table import read_table

CONVERTER = shutil.which("dcm2niix") or (Path(sys.executable).parent / "dcm2niix").is_file()


def series(description="", number=1, shape=(24, 28, 20), side=4.0, name=None, **facts):
    known = {"SeriesDescription": description, "SeriesNumber": number, "Modality": "MR", **facts}
    return Series(Path(name or f"{number}.nii.gz"), known, shape, (side,) * 3)


@pytest.mark.parametrize(
    ("description", "kind"),
    [
        ("t1_mprage_sag_p2", "T1w"),
        ("AX T1 FLAIR", "T1w"),
        ("3D FSPGR", "T1w"),
        ("t2_space_dark-fluid_sag", "FLAIR"),
        ("t2_tirm_tra_dark-fluid", "FLAIR"),
        ("Ax T2 FLAIR", "FLAIR"),
        ("t2_tse_tra", "T2w"),
        ("t1_mprage_KM", "ce-gd_T1w"),
        ("AX T1 POST GAD", "ce-gd_T1w"),
        ("t1 posterior fossa", "T1w"),
    ],
)
def test_a_description_tells_what_a_series_is(description, kind):
    assert kind_of(series(description)) == (kind, "")


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"EchoTime": 0.003, "RepetitionTime": 2.0, "InversionTime": 0.9}, "T1w"),
        ({"EchoTime": 0.012, "RepetitionTime": 0.5}, "T1w"),
        ({"EchoTime": 0.39, "RepetitionTime": 5.0, "InversionTime": 1.8}, "FLAIR"),
        ({"EchoTime": 0.1, "RepetitionTime": 4.0}, "T2w"),
        ({"EchoTime": 0.012, "RepetitionTime": 0.5, "ContrastBolusAgent": "Gadovist"}, "ce-gd_T1w"),
        ({"EchoTime": 0.012, "RepetitionTime": 0.5, "ContrastBolusAgent": "NONE"}, "T1w"),
        ({"Modality": "CT"}, "CT"),
    ],
)
def test_times_tell_it_where_the_description_does_not(facts, kind):
    assert kind_of(series("sag 3d", **facts)) == (kind, "")


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (series("localizer t1"), "a localizer"),
        (series("t1_mprage", shape=(24, 28, 5)), "covers 20 mm only"),
        (series("t1_mprage", shape=(24, 28, 20, 3)), "3 volumes"),
        (series("ep2d_diff_ADC"), "not a plain anatomical image"),
        (series("t1 map"), "not a plain anatomical image"),
        (series("t1_mpr_cor", ImageType=["DERIVED", "SECONDARY", "MPR"]), "not a plain anatomical image: MPR"),
        (series("t2*_gre"), "neither its description nor its times"),
        (series("brain"), "neither its description nor its times"),
    ],
)
def test_what_is_no_image_of_the_head_is_left_out_with_the_reason(found, reason):
    kind, why = kind_of(found)
    assert kind == ""
    assert reason in why


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (series("t1", 1), series("t1", 9, ImageType=["DERIVED"])),
        (series("t1", 1, (90, 90, 90), side=1.0), series("t1", 9)),
        (series("t1", 9), series("t1", 1)),
        (series("ct", 3, name="3_Tilt_1.nii.gz", Modality="CT"), series("ct", 3, Modality="CT")),
    ],
)
def test_of_several_the_original_finer_or_later_is_taken(better, worse):
    for order in ([better, worse], [worse, better]):
        taken, others = chosen_series(order)
        assert list(taken.values()) == [better]
        assert [left for left, _ in others] == [worse]


def test_each_folder_is_a_person_with_a_label_of_its_own(tmp_path):
    for name in ("p_01", "sub-02", ".hidden"):
        (tmp_path / name).mkdir()
    assert {label: folder.name for label, folder in person_folders(tmp_path, None).items()} == {
        "p01": "p_01",
        "02": "sub-02",
    }
    assert person_folders(tmp_path, "sub-7") == {"7": tmp_path}
    (tmp_path / "p-01").mkdir()
    with pytest.raises(CohortError, match="label would be 'p01' of p-01, too"):
        person_folders(tmp_path, None)


def test_without_the_converter_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "in" / "p1").mkdir(parents=True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (row,) = import_dicom(tmp_path / "in", tmp_path / "out")
    assert "sa-swin[dicom]" in row["reason"]


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """A function that imports persons whose only series is a T1w, or who have none, into one dataset."""

    def call(**kinds):
        for label in kinds:
            (tmp_path / "in" / label).mkdir(parents=True)
        persons = lambda label, folder, output: [  # noqa: E731
            {"participant_id": f"sub-{label}", "folder": folder.name, "series": 3, **kinds[label]}
        ]
        monkeypatch.setattr(dicom, "import_person", persons)
        import_dicom(tmp_path / "in", tmp_path / "out")
        shutil.rmtree(tmp_path / "in")
        return tmp_path / "out"

    return call


TAKEN, LEFT = {"taken_as": "T1w"}, {"reason": "no image"}


def test_persons_are_added_to_a_dataset_that_is_there_and_nothing_of_it_is_lost(imported, tmp_path):
    table = "participant_id\tage\tgroup\r\nsub-01\t63\tpatient\r\n2\t50\tn/a"
    (tmp_path / "out").mkdir()
    own = {"participants.tsv": table, "dataset_description.json": '{"Name": "Mine"}', ".bidsignore": "extra/\n"}
    for name, text in own.items():
        (tmp_path / "out" / name).write_bytes(text.encode())
    output = imported(**{"01": TAKEN, "02": TAKEN, "p3": TAKEN, "p4": LEFT})
    own["participants.tsv"] = f"{table}\r\nsub-p3\tn/a\tn/a\r\n"
    assert {name: (output / name).read_bytes().decode() for name in own} == own
    assert subject_facts(output) == {"01": {"age": "63", "group": "patient"}, "2": {"age": "50"}, "p3": {}}


def test_who_is_there_under_another_spelling_keeps_the_row_and_the_new_person_gets_one(imported, tmp_path):
    image = tmp_path / "out" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    image.parent.mkdir(parents=True)
    image.touch()
    (tmp_path / "out" / "participants.tsv").write_text("participant_id\tage\nsub-01\t63\n")
    output = imported(**{"1": TAKEN})
    assert (output / "participants.tsv").read_text() == "participant_id\tage\nsub-01\t63\nsub-1\tn/a\n"


def test_images_that_no_import_made_are_not_written_over(imported, tmp_path):
    image = tmp_path / "out" / "sub-p1" / "anat" / "sub-p1_T1w.nii.gz"
    image.parent.mkdir(parents=True)
    image.touch()
    output = imported(p1=TAKEN, p2=TAKEN)
    first, second = sorted(read_table(output / "sourcedata" / "dicom.tsv"), key=lambda row: row["participant_id"])
    assert first["reason"] == "there are images of that label that no import made; give this person another label"
    assert second["taken_as"] == "T1w"
    assert (output / "participants.tsv").read_text() == "participant_id\nsub-p2\n"


def test_what_was_told_of_persons_of_an_earlier_import_stays_told(imported):
    imported(p1=TAKEN, p2=LEFT)
    output = imported(p2=TAKEN)
    rows = read_table(output / "sourcedata" / "dicom.tsv")
    assert {row["participant_id"]: row.get("taken_as") for row in rows} == {"sub-p1": "T1w", "sub-p2": "T1w"}
    assert (output / "participants.tsv").read_text() == "participant_id\nsub-p1\nsub-p2\n"


def test_where_nobody_has_an_image_the_participants_stay_as_they_are(imported):
    assert not (imported(p1=LEFT) / "participants.tsv").exists()
    before = (imported(p1=TAKEN) / "participants.tsv").stat()
    assert (imported(p2=LEFT) / "participants.tsv").stat() == before


@pytest.mark.parametrize("killed_at", ["p1", "p2"])
def test_an_import_that_was_stopped_goes_on(tmp_path, monkeypatch, killed_at):
    for label in ("p1", "p2", "p3"):
        (tmp_path / "in" / label).mkdir(parents=True)

    def import_person(label, folder, output):
        image = output / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
        if label == killed_at:
            raise KeyboardInterrupt
        return [{"participant_id": f"sub-{label}", "folder": folder.name, "series": 3, **TAKEN}]

    monkeypatch.setattr(dicom, "import_person", import_person)
    with pytest.raises(KeyboardInterrupt):
        import_dicom(tmp_path / "in", tmp_path / "out")
    table, people = tmp_path / "out" / "sourcedata" / "dicom.tsv", tmp_path / "out" / "participants.tsv"
    assert [row.get("taken_as") for row in read_table(table)] == [*["T1w"] * (killed_at == "p2"), None]
    assert people.exists() == (killed_at == "p2")
    killed_at = ""
    import_dicom(tmp_path / "in", tmp_path / "out")
    assert {row["participant_id"]: row.get("taken_as") for row in read_table(table)} == dict.fromkeys(
        ("sub-p1", "sub-p2", "sub-p3"), "T1w"
    )
    assert people.read_text().split() == ["participant_id", "sub-p1", "sub-p2", "sub-p3"]


@pytest.mark.skipif(not CONVERTER, reason="dcm2niix is not installed")
def test_series_become_a_bids_dataset_that_names_nobody(tmp_path, capsys):
    pytest.importorskip("pydicom")
    from dicom_series import write_series

    person = tmp_path / "in" / "p_1"
    write_series(person / "a", 1, "localizer", slices=3)
    write_series(person / "b", 2, "t1_mprage", InversionTime=900.0)
    write_series(person / "c", 5, "t1_mprage", InversionTime=900.0)
    write_series(person / "c", 6, "t1_mprage_km")
    (tmp_path / "in" / "p_2").mkdir()
    (tmp_path / "in" / "p_2" / "notes.txt").write_text("no image")
    output = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main(["cohort", "dicom", str(tmp_path / "in"), str(output)])
    assert stop.value.code == 1
    assert "1 of 2 persons have an image" in capsys.readouterr().out
    scans, _ = find_scans(output, ["T1w"], None, None)
    assert [scan.images for scan in scans] == [("sub-p1/anat/sub-p1_T1w.nii.gz",)]
    image = nib.load(output / scans[0].images[0])
    assert image.get_fdata()[0, 0, 0] == 50
    corner = image.affine @ [0, 0, 0, 1]
    np.testing.assert_allclose(np.abs(corner[:2]), (46, 54), atol=0.1)
    np.testing.assert_allclose(nib.as_closest_canonical(image).affine[:3, 3], (-46, -54, -38), atol=0.1)
    with (output / "sourcedata" / "dicom.tsv").open() as file:
        rows = {row["series"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert [rows[number]["taken_as"] for number in ("1", "2", "5", "6")] == ["n/a", "n/a", "T1w", "ce-gd_T1w"]
    assert rows["n/a"]["participant_id"] == "sub-p2"
    for path in (path for path in output.rglob("*") if path.is_file()):
        content = nib.load(path).to_bytes() if path.name.endswith("gz") else path.read_bytes()
        assert not any(word in content for word in (b"Doe", b"MRN-4711", b"19500101", b"120500")), path
    assert json.loads((output / "sub-p1/anat/sub-p1_T1w.json").read_text())["InversionTime"] == 0.9
