import contextlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from planted import LPS, copy_under_another_name, head, image_path, make_tree, mask_path, save

from custom.data.case import CohortError
from custom.data.contents import ContentCache, contents_of, file_hashes
from custom.data.datalist import load_datalist
from sa_swin.cohort.checks import check_datalist
from sa_swin.cohort.command import build_command, check_command
from sa_swin.cohort.voxels import UNUSABLE, Expected, check_case

SECTIONS = ("training", "validation", "testing")
BUILD = {"mask": "label-lesion_mask", "target": "diagnosis", "classes": "healthy=0,tumour|infarct=1"}


def make_lists(root, **options):
    build_command(str(root / "datalists"), str(root), **(BUILD | {"healthy": "diagnosis=healthy"} | options))
    return root / "datalists"


def found(datalist, root, **options):
    """What the check finds: relative file and kind, each once."""
    report = check_datalist(datalist, root, **options)
    return {(str(Path(f.file).relative_to(root)), f.kind, f.severity) for f in report.unique()}


def relative(path, root):
    return str(path.relative_to(root))


@pytest.fixture
def tree(tmp_path):
    root = make_tree(tmp_path / "bids")
    make_lists(root)
    return root


@pytest.mark.parametrize("bundle", ["pretrain", "classify", "segment"])
def test_nothing_is_found_in_a_sound_cohort(tree, bundle):
    assert found(tree / "datalists" / f"{bundle}.json", tree, num_classes=2) == set()


@pytest.fixture
def planted(tmp_path):
    """A tree with every planted fault, its lists, and what there is to find, by list: file, kind, severity."""
    root = make_tree(tmp_path / "bids")

    def image(number, **where):
        return image_path(root, f"sub-{number:02d}", **where)

    (root / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\tsite\nses-2\tsouth\n")
    mask_path(root, "sub-06").unlink()  # a mask that was never there
    make_lists(root)
    mask_path(root, "sub-02").unlink()  # a mask that has gone since
    save(mask_path(root, "sub-04"), head(4, "right")[1], np.eye(4))  # image LPS, mask with identity affine
    image(5).write_bytes(image(5).read_bytes()[:-3000])
    copy_under_another_name(image(7), image(9))
    volume, _ = head(8, "right")
    volume[10, 10, 10] = np.nan
    save(image(8), volume)
    save(image(11), np.stack([head(11)[0]] * 2, axis=-1))
    mask = head(10, "left")[1]
    save(mask_path(root, "sub-10"), mask[::-1].copy())  # declared left, marked right
    save(image(13), np.full_like(volume, 7))
    save(image(15), head(15)[0], np.diag([-60.0, -60.0, 60.0, 1.0]))  # cm taken for mm
    save(mask_path(root, "sub-12"), 5 * head(12, "right")[1])
    (root / "sub-17" / "ses-1" / "anat" / "sub-17_ses-1_T1w.nii.gz").write_bytes(b"no image")
    everywhere = {(image(8), "not_finite")}
    images = {
        (image(5), "unreadable"),
        (image(7), "duplicate"),
        (image(9), "duplicate"),
        (image(11), "not_3d"),
        (image(13), "constant"),
        (image(15), "spacing"),
        (image(17), "unreadable"),
    }
    masks = {
        (mask_path(root, "sub-02"), "missing"),
        (mask_path(root, "sub-04"), "left_right"),
        (mask_path(root, "sub-10"), "side"),
        (mask_path(root, "sub-12"), "mask_values"),
    }
    two_sites = {
        (relative(image(1), root), "two_sites", "warning"),
        (relative(image(1, ses="2"), root), "two_sites", "warning"),
    }
    errors = {
        name: {(relative(path, root), kind, "error") for path, kind in what | everywhere}
        for name, what in {"pretrain": images, "classify": images, "segment": masks}.items()
    }
    return root, {name: own | (two_sites if name != "segment" else set()) for name, own in errors.items()}


@pytest.mark.parametrize("bundle", ["pretrain", "classify", "segment"])
def test_exactly_the_planted_faults_are_found(planted, bundle):
    root, faults = planted
    assert found(root / "datalists" / f"{bundle}.json", root, num_classes=2) == faults[bundle]


def test_the_mask_that_was_never_there_is_named_when_the_lists_are_built(planted):
    root, _ = planted
    left_out = json.loads((root / "datalists" / "segment.json").read_text())["left_out"]
    patients = {f"sub-{number:02d} ses-1" for number in range(2, 21, 2)}
    assert [item for item in left_out if item["subject"] in patients] == [
        {"subject": "sub-06 ses-1", "reason": "no label-lesion_mask"}
    ]


@pytest.mark.parametrize("bundle", ["classify", "segment"])
def test_the_good_rest_is_sound_and_loads(planted, tmp_path, capsys, bundle):
    root, faults = planted
    rest, report = tmp_path / "rest.json", tmp_path / "report.json"
    options = {"dataset_dir": str(root), "num_classes": 2, "workers": 1}
    with pytest.raises(SystemExit) as stopped:
        check_command(str(root / "datalists" / f"{bundle}.json"), quarantine=str(rest), json=str(report), **options)
    assert stopped.value.code == 1
    text = capsys.readouterr().out
    for file, kind, severity in faults[bundle]:
        assert f"{file}\n" in text
        assert f"{severity}, {kind}: " in text
    written = {(str(Path(f["file"]).relative_to(root)), f["kind"], f["severity"])
               for f in json.loads(report.read_text())["findings"]}  # fmt: skip
    assert written == faults[bundle]
    assert {severity for _, _, severity in found(rest, root, num_classes=2)} <= {"warning"}
    bad = {file for file, _, severity in faults[bundle] if severity == "error"}
    before = json.loads((root / "datalists" / f"{bundle}.json").read_text())
    for section, entries in before.items():
        if section in SECTIONS:
            good = [e for e in entries if not bad & {e["image"], str(e.get("label"))}]
            assert json.loads(rest.read_text())[section] == good
    assert load_datalist(rest, "training", root, {"classify": "class", "segment": "mask"}[bundle], num_classes=2)


def test_several_workers_find_the_same(planted):
    root, faults = planted
    assert found(root / "datalists" / "segment.json", root, num_classes=2, workers=2) == faults["segment"]


def test_an_identity_affine_on_the_mask_of_an_lps_image_names_both_and_says_what_is_swapped(tree):
    mask = mask_path(tree, "sub-04")
    save(mask, head(4, "right")[1], np.eye(4))
    report = check_datalist(tree / "datalists" / "segment.json", tree)
    (finding,) = report.errors()
    assert finding.file == str(mask)
    assert str(image_path(tree, "sub-04")) in finding.problem
    assert "same shape but another affine" in finding.problem
    assert "axes RAS and LPS" in finding.problem
    assert "left and right are swapped" in finding.problem
    with pytest.raises(CohortError, match=r"sub-04.*mask.nii.gz: same shape but another affine than .*sub-04"):
        load_datalist(tree / "datalists" / "segment.json", section_of(tree, "segment", "sub-04"), tree, "mask")


def section_of(root, bundle, subject):
    lists = json.loads((root / "datalists" / f"{bundle}.json").read_text())
    return next(s for s in SECTIONS if any(entry["subject"] == subject for entry in lists.get(s, [])))


def test_channels_that_disagree_are_found(tmp_path):
    root = make_tree(tmp_path / "bids")
    make_lists(root, image="T1w,FLAIR")
    flair = {number: image_path(root, f"sub-{number:02d}", "FLAIR") for number in (2, 3, 4)}
    save(flair[2], head(102)[0][:-1])
    save(flair[3], head(103)[0], LPS * np.array([-1, 1, 1, 1])[:, None])
    save(flair[4], head(104)[0], LPS + 0.5 * np.eye(4)[3] * np.eye(4)[0][:, None])
    assert found(root / "datalists" / "pretrain.json", root) == {
        (relative(flair[2], root), "shape", "error"),
        (relative(flair[3], root), "left_right", "error"),
        (relative(flair[4], root), "affine", "error"),
    }


def test_wrong_entries_are_found(tree):
    path = tree / "datalists" / "classify.json"
    lists = json.loads(path.read_text())
    first, second, third = lists["training"][:3]
    first["label"], second["label"] = 2, "one"
    third["image"] = [third["image"], third["image"].replace("T1w", "FLAIR")]
    path.write_text(json.dumps(lists))
    assert found(path, tree, label="class", num_classes=2) == {
        (first["image"], "label", "error"),
        (second["image"], "label", "error"),
        (third["image"][0], "channels", "error"),
    }


def test_a_subject_on_two_sides_of_a_split_and_a_file_listed_twice_are_found(tree):
    path = tree / "datalists" / "classify.json"
    lists = json.loads(path.read_text())
    (sub_03,) = {s for s in SECTIONS if any(e["subject"] == "sub-03" for e in lists[s])}
    runs = [entry for entry in lists[sub_03] if entry["subject"] == "sub-03"]
    lists[sub_03] = [entry for entry in lists[sub_03] if entry["subject"] != "sub-03"]
    lists["training"].append(runs[0])
    lists["testing"] += [runs[1], lists["testing"][0]]
    path.write_text(json.dumps(lists))
    assert found(path, tree) == {
        (runs[0]["image"], "split", "error"),
        (lists["testing"][0]["image"], "repeated", "error"),
    }
    report = check_datalist(path, tree)
    assert "subject 03 is in training and in testing" in str(report.errors())


def test_a_list_split_into_folds_by_scan_is_found(tree):
    path = tree / "list.json"
    entries = [
        {
            "image": relative(image_path(tree, "sub-03", run=str(run)), tree),
            "subject": "sub-03",
            "label": 0,
            "fold": run,
        }
        for run in (1, 2)
    ]
    path.write_text(json.dumps({"training": entries}))
    assert {kind for _, kind, _ in found(path, tree)} == {"split"}
    entries[1]["fold"] = 1
    path.write_text(json.dumps({"training": entries}))
    assert found(path, tree) == set()


def test_a_class_that_a_part_lacks_is_a_warning(tree, capsys):
    path = tree / "datalists" / "classify.json"
    lists = json.loads(path.read_text())
    lists["testing"] = [entry for entry in lists["testing"] if entry["label"] == 0]
    path.write_text(json.dumps(lists))
    check_command(str(path), workers=1)
    out = capsys.readouterr().out
    assert "warning, balance: nobody of class 1 in testing" in out
    assert "testing: 2 class 0" in out


def test_headers_that_disagree_on_left_and_right_are_found(tree):
    path = image_path(tree, "sub-01")
    image = nib.load(path)
    image.set_qform(LPS * np.array([-1, 1, 1, 1])[:, None], 1)
    nib.save(image, path)
    silent = image_path(tree, "sub-05")
    image = nib.load(silent)
    image.set_qform(None, 0)
    image.set_sform(None, 0)
    nib.save(image, silent)
    assert found(tree / "datalists" / "pretrain.json", tree) == {
        (relative(path, tree), "left_right", "error"),
        (relative(silent, tree), "left_right", "warning"),
    }


def test_a_side_is_judged_in_the_world_whatever_the_storage(tree):
    for number, flip in ((2, (0,)), (4, (0, 1)), (8, (2,))):
        image, mask = image_path(tree, f"sub-{number:02d}"), mask_path(tree, f"sub-{number:02d}")
        for path in (image, mask):
            loaded = nib.load(path)
            turned = loaded.affine @ nib.orientations.inv_ornt_aff(
                [[axis, -1 if axis in flip else 1] for axis in range(3)], loaded.shape
            )
            save(path, np.flip(np.asarray(loaded.dataobj), flip).copy(), turned)
    assert found(tree / "datalists" / "segment.json", tree) == set()


def test_an_unknown_side_is_found(tree):
    path = tree / "datalists" / "segment.json"
    lists = json.loads(path.read_text())
    lists["training"][0]["side"] = "port"
    path.write_text(json.dumps(lists))
    assert found(path, tree) == {(lists["training"][0]["image"], "side", "error")}


def test_an_empty_mask_and_a_small_volume_are_found(tree):
    save(mask_path(tree, "sub-02"), np.zeros(head(2)[1].shape, np.uint8))
    small, mask = image_path(tree, "sub-04"), mask_path(tree, "sub-04")
    save(small, head(4, "right")[0][:, :, :9])
    save(mask, head(4, "right")[1][:, :, :9])
    assert found(tree / "datalists" / "segment.json", tree) == {
        (relative(mask_path(tree, "sub-02"), tree), "empty_mask", "warning"),
        (relative(small, tree), "size", "error"),
    }


def test_no_list_is_one_sentence(tmp_path):
    with pytest.raises(CohortError, match="no datalist at"):
        check_datalist(tmp_path / "none.json", tmp_path)
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(CohortError, match="has no cases in training, validation, testing"):
        check_datalist(tmp_path / "empty.json", tmp_path)
    with pytest.raises(CohortError, match="label must be one of none, class, mask, healthy; got 'masks'"):
        check_datalist(tmp_path / "empty.json", tmp_path, label="masks")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """An uncompressed image, its mask, and a place for a damaged copy."""
    root = tmp_path_factory.mktemp("sound")
    volume, mask = head(1, "left")
    save(root / "image.nii", (volume * 10).astype(np.int16))
    save(root / "mask.nii", mask)
    return root


@example([(307, 78)], 348)  # an affine that is none, and no voxels
@given(st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), min_size=1, max_size=5), st.integers(300, 40_000))
def test_a_damaged_header_or_file_never_stops_a_check(sound, damage, length):
    content = bytearray((sound / "image.nii").read_bytes()[:length])
    for place, value in damage:
        content[min(place, length - 1)] = value
    (sound / "damaged.nii").write_bytes(content)
    case = {"image": str(sound / "damaged.nii"), "label": str(sound / "mask.nii"), "side": "left"}
    findings = check_case(case, Expected("mask", 1, 2)).findings
    whole = (sound / "image.nii").stat().st_size
    assert findings or length >= whole
    kinds = {finding.kind for finding in findings}
    if "unreadable" in kinds:
        expected = pytest.raises(CohortError)
    else:  # the check does not read on in what is no volume
        expected = contextlib.suppress(CohortError) if kinds & set(UNUSABLE) else contextlib.nullcontext()
    with expected:
        contents_of([case["image"]])


# ---- content hashes


@pytest.mark.parametrize("flip", [(), (0,), (1, 2)])
def test_a_copy_has_a_hash_in_common_however_it_is_stored(tmp_path, flip):
    volume = (head(1)[0] * 10).astype(np.int16)
    save(tmp_path / "a.nii.gz", volume)
    save(tmp_path / "b.nii", np.flip(volume, flip).transpose(1, 2, 0).copy(), np.diag([2.0, 3, 4, 1]))
    save(tmp_path / "c.nii.gz", volume.astype(np.float64))
    copy_under_another_name(tmp_path / "a.nii.gz", tmp_path / "d.nii.gz")
    scaled = nib.load(tmp_path / "d.nii.gz").get_fdata()
    np.testing.assert_allclose(scaled, 2.0 * volume + 5)  # the header of d does scale
    save(tmp_path / "e.nii.gz", scaled.astype(np.float32))
    first, *others = (set(file_hashes(tmp_path / name)) for name in ("a.nii.gz", "b.nii", "c.nii.gz", "d.nii.gz"))
    assert all(first & other for other in others)
    assert set(file_hashes(tmp_path / "d.nii.gz")) & set(file_hashes(tmp_path / "e.nii.gz"))


def test_one_other_voxel_is_another_image(tmp_path):
    volume = head(1)[0]
    save(tmp_path / "a.nii.gz", volume)
    volume[5, 5, 5] += 1
    save(tmp_path / "b.nii.gz", volume)
    assert not set(file_hashes(tmp_path / "a.nii.gz")) & set(file_hashes(tmp_path / "b.nii.gz"))


def test_hashes_are_kept_beside_the_list_and_made_anew_for_a_changed_file(tmp_path, monkeypatch):
    path = str(tmp_path / "a.nii.gz")
    save(tmp_path / "a.nii.gz", head(1)[0])
    first = contents_of([path], tmp_path)
    monkeypatch.setattr("custom.data.contents.file_hashes", lambda path: pytest.fail(f"{path} was read again"))
    assert contents_of([path], tmp_path) == first
    monkeypatch.undo()
    save(tmp_path / "a.nii.gz", head(2)[0])
    assert contents_of([path], tmp_path) != first


def test_a_check_leaves_the_hashes_for_the_leakage_guard(tree):
    check_datalist(tree / "datalists" / "pretrain.json", tree)
    cache = ContentCache(tree / "datalists")
    path = str(image_path(tree, "sub-01"))
    assert cache.get(path) == file_hashes(path)


@pytest.mark.parametrize("content", ["{", "[]", '{"a.nii.gz": 3}'])
def test_a_damaged_cache_is_no_cache(tmp_path, content):
    save(tmp_path / "a.nii.gz", head(1)[0])
    (tmp_path / ".contents.cache").write_text(content)
    path = str(tmp_path / "a.nii.gz")
    assert contents_of([path], tmp_path) == {path: frozenset(file_hashes(path))}
