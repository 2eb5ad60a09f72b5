"""A plan fits the cohort and the memory; what a training takes is measured, here by a stand-in and once in earnest."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml
from conftest import SPACING, write_nifti

from custom.data.case import CohortError
from custom.support.errors import UserError
from sa_swin.bundles import ROOT, bundle_command, bundle_folder, take_plan
from sa_swin.plan import cohort, command
from sa_swin.plan.choice import LADDER, chosen, roi_of, smaller, spacing_of, spatial_size_of
from sa_swin.plan.cohort import LOOKED_AT, Fingerprint, Sizes, look_at
from sa_swin.plan.command import GB, plan_command
from sa_swin.plan.trial import MARGIN, RUN, Need, measured, need

SIZES = Sizes(1.0, (150.0, 190.0, 150.0), 10**7)
COHORT = Fingerprint(20, 5, {"image": "a_T1w.nii.gz"}, [SIZES], "MR", 1, 2, True, None)
FIXED, VOXEL = 1 * GB, 4000


def lesions(*found):
    return replace(COHORT, sizes=[replace(SIZES, lesion=lesion) for lesion in found])


@pytest.mark.parametrize(
    ("side", "lesion", "spacing"),
    [(1.5, None, 1.5), (0.5, None, 1.0), (2.0, (12.0, 20.0), 2.0), (2.0, (4.5, 20.0), 1.5), (2.0, (1.0, 3.0), 1.0)],
)
def test_the_grid_is_as_fine_as_the_files_and_finer_for_small_lesions_but_never_below_1_mm(side, lesion, spacing):
    size = replace(SIZES, side=side, lesion=lesion or (0.0, 0.0))
    assert spacing_of(replace(COHORT, sizes=[size])) == spacing


@pytest.mark.parametrize(
    ("head", "spacing", "expected"),
    [((150, 190, 150), 1.0, (192, 224, 192)), ((150, 190, 150), 2.0, (96, 128, 96)), ((0, 0, 0), 2.0, (96, 128, 96)),
     ((120, 140, 150), 1.0, (160, 160, 192)), ((400, 400, 150), 1.0, (192, 224, 192))],
)  # fmt: skip
def test_the_volume_holds_the_heads_in_multiples_of_32_and_no_more_than_the_usual_box(head, spacing, expected):
    cohort = replace(COHORT, sizes=[replace(SIZES, head=head)])
    assert spatial_size_of(cohort, spacing) == expected


def test_the_roi_covers_the_largest_lesion_and_stays_in_the_volume():
    volume = (192, 224, 192)
    assert roi_of("segment", COHORT, 1.0, volume) == (96, 96, 96)
    assert roi_of("segment", lesions((10.0, 120.0)), 1.0, volume) == (128, 128, 128)
    assert roi_of("segment", COHORT, 2.0, (64, 96, 96)) == (64, 96, 96)
    assert roi_of("pretrain", COHORT, 2.0, (64, 96, 64)) == (64, 64, 64)
    assert roi_of("classify", COHORT, 1.0, volume) == volume


def test_smaller_rois_end_with_a_side_of_64_and_keep_y_as_long_as_z_in_pretraining():
    roi, sides = (96, 128, 96), []
    while roi:
        sides.append(roi)
        roi = smaller("segment", roi)
    assert sides == [(96, 128, 96), (96, 96, 96), (96, 96, 64), (96, 64, 64), (64, 64, 64)]
    assert smaller("pretrain", (32, 96, 96)) == (32, 64, 64)
    assert smaller("pretrain", (32, 64, 64)) is None
    assert smaller("classify", (96, 96, 96)) is None


def test_the_need_is_the_line_through_two_trainings():
    found = need(lambda batch: 100 + 7 * batch * 10, voxels=10)
    assert (found.fixed, found.voxel) == (100, 7)
    assert found.of(20) == pytest.approx(MARGIN * 240)


@pytest.mark.parametrize("gigabytes", [2.5, 3, 4, 6, 9, 12, 20, 40, 100])
@pytest.mark.parametrize("task", ["segment", "pretrain"])
def test_what_is_chosen_takes_no_more_than_there_is_and_nothing_dearer_fits(task, gigabytes):
    needs = {False: Need(FIXED, VOXEL), True: Need(FIXED, VOXEL / 3)}
    found = chosen(task, (96, 96, 96), 20, needs.get, gigabytes * GB)
    voxels = found.batch_size * found.num_samples * math.prod(found.roi_size)
    assert found.bytes == needs[found.recomputed].of(voxels) <= gigabytes * GB
    if found.roi_size == (96, 96, 96):
        step = (found.batch_size, found.num_samples, found.recomputed)
        dearer = LADDER[: LADDER.index(step)]
    else:
        dearer = LADDER
    assert all(needs[twice].of(batch * rois * 96**3) > gigabytes * GB for batch, rois, twice in dearer)


def test_a_batch_is_no_larger_than_the_cohort():
    assert chosen("segment", (96, 96, 96), 1, lambda _: Need(0, 1), 100 * GB).batch_size == 1


def test_where_nothing_fits_the_sentence_says_how_much_it_takes():
    with pytest.raises(UserError, match=r"the smallest training takes 2\.3 GB, more than 1\.0 GB; give a coarser"):
        chosen("classify", (64, 64, 64), 9, lambda _: Need(2 * GB, 0), GB)


def test_what_is_looked_at_are_voxels_heads_lesions_and_classes(tiny_cohort):
    found = look_at(tiny_cohort / "datalists" / "segment.json", tiny_cohort, "segment")
    assert (found.training, found.validation, found.in_channels, found.classes) == (2, 1, 1, 2)
    assert found.side == pytest.approx(SPACING)
    assert found.lesions[0] == pytest.approx((6 * 600 * SPACING**3 / math.pi) ** (1 / 3))
    assert found.lesions[1] == 10 * SPACING
    assert found.head[0] == pytest.approx(24 * SPACING, abs=2 * SPACING)
    assert look_at(tiny_cohort / "datalists" / "classify.json", tiny_cohort, "classify").classes == 2


@pytest.mark.parametrize("number", [1, 31, 32, 33, 40, 63, 64, 65, 1000])
def test_the_cases_that_are_looked_at_are_spread_over_the_whole_list(tiny_cohort, tmp_path, monkeypatch, number):
    looked = []
    monkeypatch.setattr(cohort, "sizes_of", lambda case, root, task: looked.append(case["image"]) or SIZES)
    entries = [{"image": f"{n}_T1w.nii"} for n in range(number)]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries}))
    look_at(tmp_path / "list.json", tmp_path, "pretrain")
    places = [int(name.removesuffix("_T1w.nii")) for name in looked]
    gaps = np.diff([*places, number])
    assert len(places) <= LOOKED_AT
    assert number // 64 < max(gaps) <= number // LOOKED_AT + 1


def test_files_outside_are_planned_with_where_that_is_allowed(tiny_cohort, planned, tmp_path):
    content = json.loads((tiny_cohort / "datalists" / "segment.json").read_text())
    (tmp_path / "outside.nii.gz").symlink_to(tiny_cohort / content["training"][0]["image"])
    content["training"][0]["image"] = str(tmp_path / "outside.nii.gz")
    shutil.copytree(tiny_cohort, tmp_path / "cohort")
    (tmp_path / "list.json").write_text(json.dumps(content))
    options = {"datalist": str(tmp_path / "list.json"), "memory": 30, "dataset": str(tmp_path / "cohort")}
    with pytest.raises(CohortError, match="lies outside of"):
        planned(**options)
    assert planned(**options, allow_outside=True)[0]["allow_outside"] is True


@pytest.fixture
def planned(tiny_cohort, tmp_path, monkeypatch):
    """A plan of the tiny cohort by a stand-in for the trial, as the YAML's values, and its text."""

    def plan(**options):
        def peak(task, settings, case, root, device, batch):
            seen = settings["spatial_size"] if task == "classify" else settings["roi_size"]
            return FIXED + VOXEL * math.prod(seen) * batch // (3 if settings["use_checkpoint"] else 1)

        monkeypatch.setattr(command, "measured", peak)
        plan_command(**{"dataset": str(tiny_cohort), "output": str(tmp_path / "plan.yaml"), "device": "cpu"} | options)
        text = (tmp_path / "plan.yaml").read_text()
        return yaml.safe_load(text), text

    return plan


def test_every_line_of_a_plan_is_a_knob_with_its_reason(planned):
    for task in ("segment", "classify", "pretrain"):
        values, text = planned(task=task, memory=30)
        config = yaml.safe_load((bundle_folder(task) / "configs" / "train.yaml").read_text())
        assert values.keys() <= config.keys()
        assert all("  # " in line for line in text.splitlines() if not line.startswith("#"))


def test_what_is_left_of_the_memory_is_for_cases_kept_in_it(planned):
    volume = 4 * 3 * 32 * 64 * 64 * 3  # bytes of three cases: two channels and a mask
    values, _ = planned(memory=30)
    assert values["spacing"] == 6.0
    assert values["spatial_size"] == [32, 64, 64]
    assert values["cache_rate"] == 1.0
    tight = (values["batch_size"] * values["num_samples"] * 32 * 64 * 64 * VOXEL + FIXED) * MARGIN + volume / 2
    tighter, _ = planned(memory=tight / GB)
    assert tighter["batch_size"] == values["batch_size"]
    assert 0.3 < tighter["cache_rate"] < 0.5
    mapped, _ = planned(memory=tight / GB, asymmetry_map=True)  # five channels in place of three
    assert mapped["asymmetry_map"] is True
    assert mapped["cache_rate"] == pytest.approx(tighter["cache_rate"] * 3 / 5, abs=0.011)


def test_a_prepared_cohort_keeps_its_grid(tiny_cohort, planned, monkeypatch):
    look = command.look_at
    record = {"spacing": [4.0] * 3, "spatial_size": [64, 64, 64]}
    monkeypatch.setattr(command, "look_at", lambda *words: replace(look(*words), prepared=record))
    values, _ = planned(memory=30)
    assert (values["spacing"], values["spatial_size"], values["align"]) == ([4.0] * 3, [64, 64, 64], False)


def test_a_plan_lies_between_the_config_and_further_layers(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text("spacing: 2\n")
    assert take_plan(["--plan", str(plan), "--seed", "1"]) == (["--seed", "1"], str(plan))
    words = bundle_command("evaluate", bundle_folder("segment"), [], plan=str(plan))
    files = re.findall(r"[\w.]+\.yaml", words[words.index("--config_file") + 1])
    assert files == ["train.yaml", "plan.yaml", "evaluate.yaml"]
    with pytest.raises(ValueError, match=r"no plan at 'none\.yaml'; sa-swin plan writes one"):
        take_plan(["--plan=none.yaml"])


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Four noisy ellipsoids of 3 mm with a mask each, three to train."""
    root = tmp_path_factory.mktemp("heads")
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (56, 64, 56)), indexing="ij")
    cases = []
    for number in range(4):
        noise = np.random.default_rng(number).random(x.shape)
        head = (x**2 + y**2 + z**2 < 0.9) * (100 + 20 * noise + 30 * (x > 0.2) * (y > 0.1))
        mask = ((x - 0.4) ** 2 + y**2 + z**2 < 0.05).astype(np.uint8)
        affine = np.diag([3.0, 3.0, 3.0, 1.0])
        write_nifti(root / f"sub-{number}_T1w.nii.gz", head.astype(np.float32), affine)
        write_nifti(root / f"sub-{number}_mask.nii.gz", mask, affine)
        cases.append(
            {"image": f"sub-{number}_T1w.nii.gz", "label": f"sub-{number}_mask.nii.gz", "subject": f"{number}"}
        )
    (root / "datalists").mkdir()
    lists = {"training": cases[:3], "validation": cases[3:]}
    (root / "datalists" / "segment.json").write_text(json.dumps(lists))
    return root


@pytest.fixture(scope="module")
def trials():
    """What trial trainings took, so that two plans of one cohort measure it once."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("gigabytes", [1.7, 3.0])
def test_a_training_with_the_plan_stays_below_the_stated_memory(gigabytes, heads, trials, tmp_path, monkeypatch):
    def once(*words):
        return trials.get(repr(words)) or trials.setdefault(repr(words), measured(*words))

    monkeypatch.setattr(command, "measured", once)
    plan = tmp_path / "plan.yaml"
    plan_command(str(heads), memory=gigabytes, device="cpu", feature_size=12, output=str(plan))
    bundle = bundle_folder("segment")
    settings = {"config_file": [str(bundle / "configs" / "train.yaml"), str(plan)], "bundle_root": str(bundle)}
    settings |= {"dataset_dir": str(heads), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path)}
    settings |= {"max_epochs": 2, "val_interval": 1, "warmup_epochs": 0, "untrusted": "found"}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(settings), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    peak = int(done.stdout.rsplit("peak ", 1)[1])
    print(f"{peak / GB:.2f} GB of {gigabytes:.1f} GB\n{plan.read_text()}")
    assert 0.5 * gigabytes * GB < peak < gigabytes * GB
