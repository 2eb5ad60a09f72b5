"""`sa-swin prepare` on a cohort of small heads: what it writes, resumes, refuses and reports."""

import csv
import itertools
import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from nilearn.datasets import load_mni152_template

from custom.alignment.version import ALIGNMENT_VERSION
from custom.data.case import CohortError
from custom.data.contents import contents_of
from custom.data.datalist import load_datalist
from custom.data.prepared import aligned_contents
from custom.support.files import digest_of
from custom.symmetry import mirror
from custom.transforms.contract import InputContract
from custom.volumes.nifti import write_nifti
from sa_swin.prepare import cohort as prepare
from sa_swin.prepare.case import align_case
from sa_swin.prepare.contact_sheet import thumbnail
from sa_swin.report.cases import Run
from sa_swin.report.page import planes_quality

SIZE = (48, 56, 48)


@pytest.fixture
def cohort(tmp_path):
    """Two turned symmetric brains at 4 mm with a mask, one hemisphere, and a file that is no image."""
    template = load_mni152_template(resolution=4)
    half = template.get_fdata(dtype=np.float32)[:25] * 1000
    brain = np.concatenate([half, half[::-1]])
    mask = np.zeros(brain.shape, np.uint8)
    mask[8:14, 20:30, 18:26] = 1
    c, s = math.cos(0.2), math.sin(0.2)
    for name, turn in (("a", np.eye(3)), ("b", np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]))):
        affine = np.eye(4)
        affine[:3, :3] = turn * 4
        affine[:3, 3] = turn @ [-98, -120, -70]
        (tmp_path / "in" / name).mkdir(parents=True)
        nib.save(nib.Nifti1Image(brain, affine), tmp_path / "in" / name / "T1.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), tmp_path / "in" / name / "lesion.nii.gz")
    (tmp_path / "in" / "c").mkdir()
    hemisphere = np.where(np.arange(50)[:, None, None] < 25, brain, 0)
    nib.save(nib.Nifti1Image(hemisphere, affine), tmp_path / "in" / "c" / "T1.nii.gz")
    (tmp_path / "in" / "broken.nii.gz").write_text("no image")
    lists = {
        "description": "kept",
        "training": [
            {"image": "a/T1.nii.gz", "label": "a/lesion.nii.gz", "subject": "a", "fold": 0},
            {"image": ["b/T1.nii.gz"], "label": 1, "subject": "b"},
        ],
        "testing": [{"image": "c/T1.nii.gz", "label": 0}, {"image": "broken.nii.gz", "label": 0}],
    }
    (tmp_path / "in" / "list.json").write_text(json.dumps(lists))
    return tmp_path


def run(cohort, **options) -> None:
    settings = {"datalist": str(cohort / "in" / "list.json"), "spacing": 4.0, "spatial_size": SIZE} | options
    prepare.prepare_command(str(cohort / "out"), **settings)


def table(cohort) -> dict[str, dict[str, str]]:
    with (cohort / "out" / "planes.csv").open() as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_one_bad_file_does_not_stop_the_rest_and_is_named(cohort, capsys):
    with pytest.raises(SystemExit) as stop:
        run(cohort)
    assert stop.value.code == 1
    rows = table(cohort)
    assert {name: row["status"] for name, row in rows.items()} == {
        "a/T1.nii.gz": "estimated",
        "b/T1.nii.gz": "estimated",
        "c/T1.nii.gz": "left out",
        "broken.nii.gz": "failed",
    }
    stderr = capsys.readouterr().err
    assert "1 failed" in stderr
    assert "1 left out" in stderr
    assert "--planes TABLE.csv" in stderr
    assert "broken.nii.gz: " in stderr
    assert rows["c/T1.nii.gz"]["reason"] in stderr

    lists = json.loads((cohort / "out" / "datalists" / "list.json").read_text())
    assert lists["description"] == "kept"
    assert lists["testing"] == []
    first, second = lists["training"]
    assert first == {"image": "a/T1.nii", "label": "a/T1_label.nii", "subject": "a", "fold": 0}
    assert second == {"image": ["b/T1.nii"], "label": 1, "subject": "b"}
    assert float(rows["b/T1.nii.gz"]["yaw_deg"]) == pytest.approx(math.degrees(0.2), abs=0.2)
    assert (cohort / "out" / "contact_sheet_01.png").exists()

    image = torch.from_numpy(nib.load(cohort / "out" / "b" / "T1.nii").get_fdata(dtype=np.float32))
    assert image.shape == SIZE
    assert (image - mirror(image)).abs().mean() < 0.1 * image.mean()
    mask = nib.load(cohort / "out" / first["label"])
    assert set(np.unique(mask.dataobj)) == {0, 1}
    assert mask.get_data_dtype() == np.uint8
    record = json.loads((cohort / "out" / "b" / "T1.json").read_text())
    np.testing.assert_allclose(record["aligned_affine"], nib.load(cohort / "out" / "b" / "T1.nii").affine, atol=1e-4)
    assert record["source_size"] == list(nib.load(cohort / "in" / "b" / "T1.nii.gz").shape)


@pytest.mark.parametrize(
    ("untrusted", "status", "kept"),
    [("as_it_lies", "as it lies", 1), ("found", "found, not trusted", 1), ("leave_out", "left out", 0)],
)
def test_an_untrusted_volume_is_handled_as_chosen(cohort, untrusted, status, kept):
    with pytest.raises(SystemExit):
        run(cohort, untrusted=untrusted)
    assert table(cohort)["c/T1.nii.gz"]["status"] == status
    assert len(json.loads((cohort / "out" / "datalists" / "list.json").read_text())["testing"]) == kept
    assert (cohort / "out" / "c" / "T1.nii").exists() == bool(kept)
    assert (cohort / "out" / "c" / "T1.png").exists()  # on the contact sheet in any case


@pytest.mark.parametrize(
    ("untrusted", "status"), [("leave_out", "left out"), ("found", "left out"), ("as_it_lies", "as it lies")]
)
def test_a_volume_without_a_head_is_handled_as_chosen(cohort, untrusted, status):
    empty = np.zeros((30, 30, 30), np.float32)
    empty[10:14, 10:14, 10:14] = 100
    nib.save(nib.Nifti1Image(empty, np.diag([4, 4, 4, 1])), cohort / "in" / "c" / "T1.nii.gz")
    with pytest.raises(SystemExit):
        run(cohort, untrusted=untrusted)
    assert table(cohort)["c/T1.nii.gz"]["status"] == status
    assert "no head found" in table(cohort)["c/T1.nii.gz"]["reason"]
    assert (cohort / "out" / "c" / "T1.nii").exists() == (status == "as it lies")


def test_a_second_run_makes_only_what_is_missing_or_changed(cohort):
    with pytest.raises(SystemExit):
        run(cohort)
    kept, gone = cohort / "out" / "a" / "T1.nii", cohort / "out" / "b"
    before = kept.stat().st_mtime_ns
    (gone / "T1.json").unlink()
    (gone / "T1.nii").unlink()
    with pytest.raises(SystemExit):
        run(cohort)
    assert kept.stat().st_mtime_ns == before
    assert (gone / "T1.nii").exists()
    (gone / "T1.nii").unlink()  # lost, while its record is there
    with pytest.raises(SystemExit):
        run(cohort)
    assert kept.stat().st_mtime_ns == before
    assert (gone / "T1.nii").exists()
    (cohort / "in" / "a" / "T1.nii.gz").touch()
    with pytest.raises(SystemExit):
        run(cohort)
    assert kept.stat().st_mtime_ns > before


def test_a_cohort_that_is_named_in_another_way_is_not_made_again(cohort):
    (cohort / "in" / "datalists").mkdir()
    (cohort / "in" / "datalists" / "list.json").write_text(json.dumps({"training": [{"image": "a/T1.nii.gz"}]}))
    made = []
    for folder in (cohort / "in" / "a" / "..", cohort / "in"):
        run(cohort, datalist=None, dataset_dir=str(folder))
        made.append((cohort / "out" / "a" / "T1.nii").stat().st_mtime_ns)
    assert made[0] == made[1]


def test_records_tell_the_content_of_the_aligned_files(cohort):
    (cohort / "in" / "one.json").write_text(
        json.dumps({"training": [{"image": "a/T1.nii.gz", "label": "a/lesion.nii.gz"}]})
    )
    told = []
    for value in (1, 2):
        path = cohort / "in" / "a" / "lesion.nii.gz"
        mask = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(mask.dataobj) * np.uint8(value), mask.affine), path)
        run(cohort, datalist=str(cohort / "in" / "one.json"))
        told.append(aligned_contents(str(cohort / "out" / "a" / "T1.nii")))
    assert told[0].keys() == {"a/T1.nii", "a/T1_label.nii"}
    assert {path for path in told[0] if told[0][path] != told[1][path]} == {"a/T1_label.nii"}
    assert told[1] == {path: digest_of(cohort / "out" / path) for path in told[1]}


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("how", ["itself", "by a link", "images that are links", "its datalist"])
def test_no_file_of_the_cohort_is_written_over(cohort, how):
    source, output = cohort / "in", cohort / "in"
    for path in source.rglob("*.nii.gz"):  # uncompressed, they have the names of their aligned versions
        path.with_name(path.name.removesuffix(".gz")).write_bytes(path.read_bytes())
    datalist = source / "datalists" / "list.json"
    datalist.parent.mkdir()
    datalist.write_text((source / "list.json").read_text().replace(".nii.gz", ".nii"))
    options = {"dataset_dir": str(source), "datalist": str(datalist)}
    if how == "by a link":
        (output := cohort / "link").symlink_to(source)
    if how == "images that are links":  # out/a/T1.nii is the file itself, which in/a/T1.nii leads to
        (output := cohort / "out" / "a").mkdir(parents=True)
        (source / "a" / "T1.nii").rename(output / "T1.nii")
        (source / "a" / "T1.nii").symlink_to(output / "T1.nii")
        output, options["allow_outside"] = cohort / "out", True
    if how == "its datalist":
        output = cohort / "out"
        datalist = output / "datalists" / "list.json"
        datalist.parent.mkdir(parents=True)
        datalist.write_text((source / "datalists" / "list.json").read_text())
        options["datalist"] = str(datalist)
    before = contents(cohort)
    with pytest.raises(SystemExit, match=r"would be written over; give .* a folder of its own with --output"):
        prepare.prepare_command(str(output), spacing=4.0, spatial_size=SIZE, **options)
    assert contents(cohort) == before


def test_a_json_of_another_program_beside_an_aligned_image_is_no_record_of_it(cohort):
    (cohort / "out" / "a").mkdir(parents=True)
    (cohort / "out" / "a" / "T1.json").write_text('{"EchoTime": 0.003}')
    with pytest.raises(SystemExit):
        run(cohort)
    assert table(cohort)["a/T1.nii.gz"]["status"] == "estimated"


def test_a_modality_that_is_named_later_is_checked(cohort, capsys):
    with pytest.raises(SystemExit):
        run(cohort)
    with pytest.raises(SystemExit):
        run(cohort, modality="CT")
    assert "no CT in Hounsfield units" in table(cohort)["a/T1.nii.gz"]["reason"] + capsys.readouterr().err


def test_a_report_shows_the_planes_of_a_prepared_cohort(cohort, tmp_path):
    with pytest.raises(SystemExit):
        run(cohort)
    record = {"workflow": "train", "paths": {"dataset_dir": str(cohort / "out")}}
    shown = Run(tmp_path, [], [], {}, {"train": record}, ids=True)
    assert "of the 2 volumes that sa-swin prepare aligned" in "".join(planes_quality(shown))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"untrusted": "maybe"}, "untrusted must be one of leave_out, found, as_it_lies, .* got maybe"),
        ({"workers": 0}, "workers 1 or more; got leave_out and 0"),
        ({"spacing": -1}, r"spacing must be one or three positive mm.* got -1, \(48, 56, 48\)"),
        ({"spatial_size": (4, 5)}, r"spatial_size three positive voxels; got 4.0, \(4, 5\)"),
        ({"datalist": None}, "nothing to align; give --dataset_dir"),
        ({"datalist": None, "dataset_dir": "/nowhere"}, "no datalist at /nowhere/datalists"),
    ],
)
def test_wrong_options_are_one_sentence(cohort, options, message):
    with pytest.raises(SystemExit, match=message):
        run(cohort, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ('{"training": []}', "lists no cases"), ("[]", "lists no cases")],
)
def test_what_is_no_datalist_is_refused(tmp_path, content, message):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(SystemExit, match=message):
        prepare.prepare_command(str(tmp_path / "out"), datalist=str(tmp_path / "list.json"))
    with pytest.raises(SystemExit, match="no datalist at"):
        prepare.prepare_command(str(tmp_path / "out"), datalist=str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"image": "a.nii.gz", "label": "m.nii.gz"},
            {"image": "./a.nii.gz", "label": "n.nii.gz"},
            r"a\.nii\.gz has two masks, m\.nii\.gz and n\.nii\.gz",
        ),
        (
            {"image": ["a.nii.gz", "b.nii.gz"]},
            {"image": "b.nii.gz"},
            r"b\.nii would be written with a\.nii\.gz and again with b\.nii\.gz",
        ),
    ],
)
def test_what_would_be_aligned_twice_differently_is_refused(tmp_path, first, second, message):
    for name, entry in (("one", first), ("two", second)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"training": [entry]}))
    with pytest.raises(SystemExit, match=message):
        prepare.prepare_command(str(tmp_path / "out"), datalist=f"{tmp_path}/one.json,{tmp_path}/two.json")


@pytest.mark.parametrize("named", ["dataset_dir", "datalist"])
def test_a_folder_with_a_comma_in_its_name_is_one_folder(cohort, named):
    study = (cohort / "in").rename(cohort / "Study, 2024")
    (study / "datalists").mkdir()
    (study / "datalists" / "list.json").write_text(json.dumps({"training": [{"image": "a/T1.nii.gz"}]}))
    options = {"datalist": None, "dataset_dir": str(study)} if named == "dataset_dir" else {}
    run(cohort, **{"datalist": str(study / "datalists")} | options)
    assert table(cohort).keys() == {"a/T1.nii.gz"}


def test_two_datalists_of_one_name_are_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"two datalists are named list\.json"):
        prepare.prepare_command(str(tmp_path / "out"), datalist=("a/list.json", "b/list.json"))


@pytest.fixture
def several(cohort):
    """The cohort's two good heads in three datalists, as the bundles expect them: in `datalists`, none repeating it."""
    folder = cohort / "in" / "datalists"
    folder.mkdir()
    heads = [{"image": f"{name}/T1.nii.gz", "subject": name} for name in "ab"]
    lists = {
        "pretrain": [head | {"healthy": head["subject"] == "b"} for head in heads],
        "classify": [head | {"label": int(head["subject"] == "a")} for head in heads],
        "segment": [heads[0] | {"label": "a/lesion.nii.gz"}],
    }
    for name, entries in lists.items():
        (folder / f"{name}.json").write_text(json.dumps({"training": entries}))
    return cohort, lists


@pytest.mark.parametrize("how", ["dataset_dir", "folder", "commas"])
def test_several_datalists_share_one_alignment_and_keep_their_names(several, how, monkeypatch):
    cohort, lists = several
    aligned = []
    monkeypatch.setattr(prepare, "align_case", lambda case, *a: aligned.append(case) or align_case(case, *a))
    folder = cohort / "in" / "datalists"
    options = {
        "dataset_dir": {"dataset_dir": str(cohort / "in"), "datalist": None},
        "folder": {"datalist": str(folder)},
        "commas": {"datalist": ",".join(str(folder / f"{name}.json") for name in lists)},
    }
    run(cohort, **options[how])
    assert sorted(case.images[0] for case in aligned) == ["a/T1.nii.gz", "b/T1.nii.gz"]
    found = {path.stem: json.loads(path.read_text())["training"] for path in (cohort / "out" / "datalists").iterdir()}
    lists["segment"][0]["label"] = "a/T1_label.nii"
    for entry in itertools.chain(*lists.values()):
        entry["image"] = entry["image"].removesuffix(".gz")
    assert found == lists


def test_a_prepared_cohort_is_used_with_the_bundles_own_paths(several):
    cohort, _ = several
    run(cohort, datalist=None, dataset_dir=str(cohort / "in"), workers=2)
    out = cohort / "out"
    (case,) = load_datalist(out / "datalists" / "segment.json", "training", out, label="mask")
    contract = InputContract(label_key="label", spacing=4.0, spatial_size=SIZE, align=False)
    data = contract(case)
    raw = InputContract(label_key="label", spacing=4.0, spatial_size=SIZE)(
        {"image": str(cohort / "in" / "a" / "T1.nii.gz"), "label": str(cohort / "in" / "a" / "lesion.nii.gz")}
    )
    for key in ("image", "label"):
        torch.testing.assert_close(data[key].as_tensor(), raw[key].as_tensor(), atol=1e-3, rtol=0)
        torch.testing.assert_close(data[key].affine, raw[key].affine, atol=1e-3, rtol=0)


def test_a_second_channel_in_one_list_follows_the_first_one(several):
    cohort, _ = several
    flair = nib.load(cohort / "in" / "a" / "T1.nii.gz")
    nib.save(nib.Nifti1Image(1000 - flair.get_fdata(), flair.affine), cohort / "in" / "a" / "FLAIR.nii.gz")
    both = [{"image": ["a/T1.nii.gz", "a/FLAIR.nii.gz"], "label": "a/lesion.nii.gz"}]
    (cohort / "in" / "datalists" / "segment.json").write_text(json.dumps({"training": both}))
    run(cohort, datalist=None, dataset_dir=str(cohort / "in"), untrusted="found")  # a negative has no bright head
    first, second = (nib.load(cohort / "out" / "a" / f"{name}.nii") for name in ("T1", "FLAIR"))
    np.testing.assert_array_equal(first.affine, second.affine)
    inside = first.get_fdata() > 300
    np.testing.assert_allclose((first.get_fdata() + second.get_fdata())[inside], 1000, atol=0.1)
    read = json.loads((cohort / "out" / "datalists" / "pretrain.json").read_text())["training"]
    assert [entry["image"] for entry in read] == ["a/T1.nii", "b/T1.nii"]


def test_a_mask_on_another_grid_than_its_image_is_named(cohort):
    mask = nib.load(cohort / "in" / "a" / "lesion.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj), mask.affine * 1.01), cohort / "in" / "a" / "lesion.nii.gz")
    with pytest.raises(SystemExit):
        run(cohort)
    assert "same shape but another affine" in table(cohort)["a/T1.nii.gz"]["reason"]
    assert table(cohort)["b/T1.nii.gz"]["status"] == "estimated"


def test_the_picture_has_the_patients_right_on_the_left_and_the_front_up():
    image = torch.zeros(10, 12, 10)
    image[8, 10, 5] = 1  # right, anterior
    axial = thumbnail(image)[:, :10]
    row, column = np.argwhere(axial > 0)[0]
    assert column < 5
    assert row < 6


GRID = {"spacing": 4.0, "spatial_size": SIZE, "align": False}


@pytest.fixture
def prepared(cohort):
    """The cohort after its preparation, and a function that loads a prepared image for a training on some grid."""
    with pytest.raises(SystemExit):
        run(cohort)
    path = cohort / "out" / "own.json"
    path.write_text(json.dumps({"training": [{"image": "a/T1.nii", "subject": "a"}]}))

    def load(**changes):
        return load_datalist(path, "training", cohort / "out", grid=GRID | changes)

    return load


def test_a_prepared_image_is_taken_by_a_training_on_the_same_grid(prepared):
    assert len(prepared()) == 1
    assert len(prepared(spacing=[4, 4, 4])) == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"spacing": 3.0}, r"a/T1.nii: prepared with spacing \[4, 4, 4\] mm, but this run wants \[3, 3, 3\]"),
        ({"spatial_size": [48, 56, 64]}, r"spatial_size \[48, 56, 48\] voxels, but this run wants \[48, 56, 64\]"),
    ],
)
def test_a_training_on_another_grid_says_which_figure_differs(prepared, changes, sentence):
    with pytest.raises(CohortError, match=sentence):
        prepared(**changes)
    assert len(prepared(**changes, align=True)) == 1  # then it is resampled knowingly


def test_a_prepared_image_is_stale_once_its_source_has_changed(prepared, cohort, monkeypatch):
    monkeypatch.chdir("/")
    (cohort / "in" / "a" / "lesion.nii.gz").touch()
    with pytest.raises(CohortError, match="it was prepared from has changed since; run sa-swin prepare"):
        prepared()


def test_a_prepared_cohort_may_move_away_from_its_sources(prepared, cohort):
    (cohort / "in").rename(cohort / "elsewhere")
    assert len(prepared()) == 1


def test_a_prepared_image_is_stale_once_the_alignment_has_changed(prepared, cohort, monkeypatch):
    for module in ("custom.data.prepared", "sa_swin.prepare.case"):
        monkeypatch.setattr(f"{module}.ALIGNMENT_VERSION", ALIGNMENT_VERSION + 1)
    with pytest.raises(CohortError, match=r"prepared by version 1 of the alignment, now 2; run sa-swin prepare again"):
        prepared()
    with pytest.raises(SystemExit):
        run(cohort)
    assert len(prepared()) == 1


def test_the_leakage_guard_knows_a_prepared_image_by_its_source(prepared, cohort):
    aligned, source = (str(cohort / path) for path in ("out/a/T1.nii", "in/a/T1.nii.gz"))
    contents = contents_of([aligned, source])
    assert contents[aligned] > contents[source]


def test_the_quality_of_the_counterpart_is_in_the_table_and_the_files_stay_the_same(cohort):
    datalist = cohort / "in" / "one.json"
    datalist.write_text(json.dumps({"training": [{"image": "a/T1.nii.gz", "label": "a/lesion.nii.gz"}]}))
    run(cohort, datalist=str(datalist))
    plain = (cohort / "out" / "a" / "T1.nii").read_bytes()
    assert table(cohort)["a/T1.nii.gz"]["counterpart_similarity"] == ""
    run(cohort, datalist=str(datalist), counterpart="homologous")
    row = table(cohort)["a/T1.nii.gz"]
    assert (cohort / "out" / "a" / "T1.nii").read_bytes() == plain
    assert row["counterpart_reason"] == ""
    assert 0.9 < float(row["counterpart_mirror_similarity"]) <= float(row["counterpart_similarity"]) <= 1


def test_an_unknown_counterpart_is_refused(cohort):
    with pytest.raises(SystemExit, match="counterpart must be one of mirror, homologous; got twin"):
        run(cohort, counterpart="twin")


def test_the_pose_of_a_plane_stands_before_the_reason_also_of_a_refused_head():
    record = {"plane": {"offset": 1.0}, "yaw_deg": 12.34, "roll_deg": -3.0, "offset_mm": 4.5}
    assert prepare.pose(record) == "yaw +12.3, roll -3.0 degrees, offset +4.5 mm: "
    assert prepare.pose({"status": "failed"}) == prepare.pose({"plane": None}) == ""


def test_a_run_that_is_stopped_leaves_no_record_beside_a_file_of_another_grid(cohort, monkeypatch):
    datalist = cohort / "in" / "one.json"
    datalist.write_text(json.dumps({"training": [{"image": "a/T1.nii.gz", "label": "a/lesion.nii.gz"}]}))
    run(cohort, datalist=str(datalist))
    made = (cohort / "out" / "a" / "T1.nii").read_bytes()
    written = []

    def stopped(path, *volume):
        if written:
            raise KeyboardInterrupt
        written.append(write_nifti(path, *volume))

    monkeypatch.setattr("sa_swin.prepare.case.write_nifti", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(cohort, datalist=str(datalist), spacing=5.0)
    monkeypatch.undo()
    assert (cohort / "out" / "a" / "T1.nii").read_bytes() != made
    run(cohort, datalist=str(datalist))
    assert (cohort / "out" / "a" / "T1.nii").read_bytes() == made


def test_what_is_left_out_later_is_no_prepared_image_any_more(cohort):
    for untrusted in ("found", "leave_out"):
        with pytest.raises(SystemExit):
            run(cohort, untrusted=untrusted)
        assert (cohort / "out" / "c" / "T1.nii").exists() == (untrusted == "found")
    path = cohort / "out" / "own.json"
    path.write_text(json.dumps({"training": [{"image": "c/T1.nii"}]}))
    (cohort / "out" / "c" / "T1.nii").write_bytes((cohort / "out" / "a" / "T1.nii").read_bytes())
    with pytest.raises(CohortError, match=r"c/T1.nii: sa-swin prepare has left it out since"):
        load_datalist(path, "training", cohort / "out", grid=GRID)
