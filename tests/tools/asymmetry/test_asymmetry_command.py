import csv
import json
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from asymmetric_heads import SIZE, SPACING, head, radius

from custom.transforms.asymmetry_map import AsymmetryMap, asymmetry_map
from sa_swin.__main__ import main
from sa_swin.asymmetry.case import Reading
from sa_swin.asymmetry.norm import FEWEST, FLOOR, NormError, load_norm, make_norm, threshold_of

GRID = ("--spatial_size", ",".join(map(str, SIZE)), "--align", "False")
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
AFFINE[:3, 3] = -1.5 * (np.array(SIZE) - 1)  # the head's middle is the world's origin


def run(*arguments):
    """Exit code of the command."""
    with pytest.raises(SystemExit) as stop:
        main(["asymmetry", *map(str, arguments)])
    return stop.value.code


@pytest.fixture(scope="module")
def norm(tmp_path_factory):
    """The norm of eight heads, made by the command."""
    folder = tmp_path_factory.mktemp("healthy")
    for seed in range(FEWEST):
        nib.save(nib.Nifti1Image(head(seed)[0, 0].numpy(), AFFINE), folder / f"sub-{seed}.nii.gz")
    path = folder / "norm.safetensors"
    assert run("norm", folder, path, "--sequence", "T1w", *GRID) == 0
    return path


@pytest.fixture
def patients(tmp_path):
    """A lesion on the left, another in a file whose first axis runs to the left, a healthy head, and no image."""
    folder = tmp_path / "in"
    folder.mkdir()
    lesion = head(20, lesion=2.0, side=-1)[0, 0].numpy()
    nib.save(nib.Nifti1Image(lesion, AFFINE), folder / "sub-left.nii.gz")
    turned = AFFINE @ np.diag([-1.0, 1.0, 1.0, 1.0])
    turned[0, 3] = -AFFINE[0, 3]
    nib.save(nib.Nifti1Image(lesion[::-1].copy(), turned), folder / "sub-turned.nii.gz")
    nib.save(nib.Nifti1Image(head(21)[0, 0].numpy(), AFFINE), folder / "sub-healthy.nii.gz")
    (folder / "sub-broken.nii.gz").write_text("no image")
    return folder


def table(output):
    with (output / "asymmetry.csv").open() as file:
        return {row["subject"]: row for row in csv.DictReader(file)}


def test_lesions_are_found_on_their_side_in_the_world_and_in_the_file(norm, patients, tmp_path, capsys):
    assert run("map", patients, tmp_path / "out", "--norm", norm, *GRID) == 1
    assert "sub-broken.nii.gz" in capsys.readouterr().err
    rows = table(tmp_path / "out")
    assert [rows[f"sub-{name}"]["status"] for name in ("left", "turned", "healthy", "broken")] == [
        *["done"] * 3,
        "failed",
    ]
    for name in ("left", "turned"):
        row, image = rows[f"sub-{name}"], nib.load(patients / f"sub-{name}.nii.gz")
        place = [float(row[axis]) for axis in ("x_mm", "y_mm", "z_mm")]
        assert (row["side"], row["alarm"]) == ("left", "1")
        assert np.linalg.norm(np.subtract(place, [-30, 0, 0])) < 18
        voxel = [int(row[axis]) for axis in ("voxel_i", "voxel_j", "voxel_k")]
        np.testing.assert_allclose((image.affine @ [*voxel, 1])[:3], place, atol=0.1)
        found = nib.load(row["map"])
        np.testing.assert_allclose(found.affine, image.affine)
        assert found.get_fdata()[tuple(voxel)] == pytest.approx(float(row["peak"]), rel=1e-3)
    assert float(rows["sub-left"]["peak"]) == pytest.approx(float(rows["sub-turned"]["peak"]), rel=1e-3)
    assert float(rows["sub-healthy"]["peak"]) < float(rows["sub-left"]["peak"])


def test_a_map_is_positive_in_the_lesion_and_negative_opposite(norm, patients, tmp_path):
    run("map", patients, tmp_path / "out", "--norm", norm, *GRID)
    found = torch.from_numpy(nib.load(table(tmp_path / "out")["sub-left"]["map"]).get_fdata())
    assert found[radius((-30.0, 0.0, 0.0)) < 9].min() > 0
    assert found[radius((30.0, 0.0, 0.0)) < 9].max() < 0


def test_without_a_norm_there_is_a_map_and_no_alarm(patients, tmp_path):
    (patients / "sub-broken.nii.gz").unlink()
    assert run("map", patients, tmp_path / "out", *GRID) == 0
    row = table(tmp_path / "out")["sub-left"]
    assert (row["side"], row["alarm"], row["norm"]) == ("left", "", "")


def test_a_head_whose_affines_disagree_on_left_and_right_gets_no_side(patients, tmp_path, capsys):
    image = nib.load(patients / "sub-left.nii.gz")
    image.set_sform(AFFINE, 1)
    image.set_qform(np.diag([-1.0, 1.0, 1.0, 1.0]) @ AFFINE, 1)
    nib.save(image, patients / "sub-both.nii.gz")
    assert run("map", patients, tmp_path / "out", *GRID) == 1
    assert re.search(r"sub-both.nii.gz: .*disagree on left and right", capsys.readouterr().err)
    assert table(tmp_path / "out")["sub-left"]["side"] == "left"


def test_channels_that_do_not_share_a_grid_are_refused(patients):
    reading = Reading((3.0, 3.0, 3.0), SIZE, align=False)
    case = {"image": [str(patients / f"sub-{name}.nii.gz") for name in ("left", "turned")], "subject": "x"}
    with pytest.raises(ValueError, match="left and right are swapped"):
        reading.pair(case)


def test_a_norm_comes_back_as_it_was(norm, tmp_path):
    found = load_norm(norm)
    assert found.settings["heads"] == FEWEST
    assert found.settings["sequence"] == "T1w"
    found.save(tmp_path / "again.safetensors")
    assert load_norm(tmp_path / "again.safetensors").digest() == found.digest()


def test_a_few_lesions_hardly_move_a_norm():
    maps = [asymmetry_map(head(seed), SPACING) for seed in range(12)]
    few = [asymmetry_map(head(seed, lesion=3.0), SPACING) for seed in range(2)] + maps[2:]
    clean, mixed = (make_norm(heads, {"spacing": SPACING}) for heads in (maps, few))
    ball = radius((30.0, 0.0, 0.0))[None, None] < 15
    patient = asymmetry_map(head(30, lesion=3.0), SPACING)
    for figure in ("z_map", "strangeness"):
        one, other = (getattr(norm, figure)(patient)[ball].mean() for norm in (clean, mixed))
        assert other > 0.7 * one > 1


def test_z_scores_are_distances_from_the_median_in_spreads():
    shape = (1, 1, 6, 6, 6)
    inside = torch.ones(shape, dtype=torch.bool)
    heads = [AsymmetryMap(torch.full(shape, float(v)), torch.zeros(shape), inside) for v in range(1, 10)]
    found = make_norm(heads, {"spacing": SPACING})
    assert (found.settings["heads"], found.settings["subjects"]) == (9, 9)
    patient = AsymmetryMap(torch.full(shape, 12.0), torch.zeros(shape), inside)
    by_hand = (12 - 5) / (1.4826 * 2 + FLOOR * 5)  # of 1 to 9, the median is 5 and the median deviation from it 2
    torch.testing.assert_close(found.z_map(patient), torch.full(shape, by_hand))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("map", "{in}", "{out}", "--norm", "/none"), "no norm at /none"),
        (("map", "{in}", "{out}", "--norm", "{in}/sub-left.nii.gz"), "is no norm"),
        (("map", "{in}", "{out}", "--spacing", "-1"), "spacing must be one or three positive"),
        (("map", "{out}", "{out}"), "no NIfTI file"),
        (("norm", "{in}", "{out}/n", *GRID), "needs healthy heads of 8 subjects or more, got 3"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(patients, tmp_path, capsys, arguments, message):
    places = {"in": patients, "out": tmp_path / "out"}
    assert run(*(argument.format(**places) for argument in arguments)) == 2
    assert message in capsys.readouterr().err


def test_channels_other_than_the_norms_are_refused(norm, patients, tmp_path):
    both = ["sub-left.nii.gz", "sub-healthy.nii.gz"]
    (patients / "list.json").write_text(json.dumps({"testing": [{"image": both, "subject": "two"}]}))
    listed = ("--datalist", patients / "list.json")
    assert run("map", patients, tmp_path / "out", "--norm", norm, *listed, *GRID) == 1
    assert "1 channel(s), the case has 2" in table(tmp_path / "out")["two"]["reason"]


def test_an_alarm_rate_is_a_share():
    with pytest.raises(NormError, match="between 0 and 1, got 5"):
        make_norm([asymmetry_map(torch.zeros(1, 1, 8, 8, 8), SPACING)] * FEWEST, {"spacing": SPACING}, alarm_rate=5)


def uniform_heads(values):
    """A map for each value, which its difference has everywhere."""
    shape = (1, 1, 6, 6, 6)
    inside = torch.ones(shape, dtype=torch.bool)
    return [AsymmetryMap(torch.full(shape, float(value)), torch.zeros(shape), inside) for value in values]


@pytest.mark.parametrize("alarm_rate", [0.05, 0.5])
def test_no_head_is_measured_by_another_one_of_its_own_subject(alarm_rate):
    once, twice = uniform_heads(range(1, 9)), uniform_heads([value for value in range(1, 9) for _ in range(2)])
    settings = {"spacing": SPACING}
    expected = make_norm(once, settings, alarm_rate).threshold
    found = make_norm(twice, settings, alarm_rate, [f"sub-{i // 2}" for i in range(16)])
    assert found.threshold == pytest.approx(expected)
    assert make_norm(twice, settings, alarm_rate).threshold != pytest.approx(expected)
    assert (found.settings["heads"], found.settings["subjects"]) == (16, 8)


def test_subjects_are_counted_not_their_heads():
    with pytest.raises(NormError, match="needs healthy heads of 8 subjects or more, got 4"):
        make_norm(uniform_heads(range(8)), {"spacing": SPACING}, subjects=["a", "b", "c", "d"] * 2)


def test_further_healthy_heads_raise_an_alarm_at_the_rate_that_was_asked_for():
    peaks = np.random.default_rng(0).exponential(size=(20_000, 20))
    for count, rate in ((19, 0.05), (9, 0.1), (10, 0.25)):
        alarms = [threshold_of(row[:count], rate) < row[-1] for row in peaks]
        assert np.mean(alarms) == pytest.approx(np.floor((count + 1) * rate) / (count + 1), abs=0.01)


def test_a_rate_that_so_few_heads_cannot_hold_is_told(caplog):
    assert threshold_of(range(1, 20), 0.05) == 19
    assert caplog.text == ""
    assert threshold_of(range(1, 9), 0.05) == 8
    assert "8 healthy heads can hold no alarm rate below 0.111, and so not 0.05; give more heads" in caplog.text


def test_a_norm_is_for_heads_of_its_own_sequence(norm, tmp_path, caplog):
    for suffix in ("T1w", "FLAIR"):
        path = tmp_path / "in" / "sub-1" / "anat" / f"sub-1_{suffix}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(head(20)[0, 0].numpy(), AFFINE), path)
    assert run("map", tmp_path / "in", tmp_path / "out", "--norm", norm, *GRID) == 0
    with (tmp_path / "out" / "asymmetry.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["image"].endswith("sub-1_T1w.nii.gz")
    assert row["norm_sequence"] == "T1w"
    assert "1 not T1w, as the weights or the norm" in caplog.text
    assert run("map", tmp_path / "in", tmp_path / "out", *GRID) == 0  # without a norm, any
