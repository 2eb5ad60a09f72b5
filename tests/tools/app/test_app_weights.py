import csv
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import write_nifti
from released import SEEN, network_of

from custom.evaluation.batch_inference import stamp
from custom.support.errors import UserError
from custom.weights.settings import carrying
from custom.weights.transfer import weights_digest
from sa_swin.__main__ import main
from sa_swin.app.command import wanted_images, wanted_models
from sa_swin.app.derivatives import class_figures, lesion_figures, write_lesions
from sa_swin.app.models import load_model, predict
from sa_swin.app.page import class_section, lesion_section
from sa_swin.app.scans import AppScan
from sa_swin.bundles import ROOT, bundle_command, bundle_folder

SETTINGS = {"modality": "MR", "in_channels": 1, "spacing": 6.0, "spatial_size": [32, 64, 64], "feature_size": 12,
            "window_size": 4, "roi_size": [32, 64, 64]}  # fmt: skip


def saved(folder, task, change=lambda network: None, **settings):
    network = network_of(task)
    change(network)
    folder.mkdir(parents=True, exist_ok=True)
    seen = [SEEN, SEEN | {"section": "validation", "subjects": ["ab", "cd"]}]
    torch.save(carrying(network.state_dict(), seen=seen, settings=SETTINGS | settings), folder / "model.pt")
    return folder


def spread_out(network):
    for parameter in network.parameters():
        parameter.data *= 1.5


def calibrated(network):
    network.temperature.fill_(1.5)


def app(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["app", *map(str, arguments)])
    return stop.value.code


def predicted(task, weights, study, tmp_path, *options):
    """What `sa-swin predict` leaves of the first head."""
    output = tmp_path / f"predicted_{task}"
    words = ["--dataset_dir", study, "--images", "sub-1_T1w.nii.gz", "--output_dir", output, *options]
    command = bundle_command("predict", bundle_folder(task), [*map(str, words), "--checkpoint", f"{weights}/model.pt"])
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return output


@pytest.fixture
def study(tmp_path):
    """A BIDS folder of two noisy boxes, the second of which cannot be read."""
    values = np.random.default_rng(0).standard_normal((24, 28, 24))
    head = np.zeros((32, 36, 32), np.float32)
    head[4:-4, 4:-4, 4:-4] = 40 + 4 * values
    write_nifti(tmp_path / "study" / "sub-1" / "anat" / "sub-1_T1w.nii.gz", head)
    (tmp_path / "study" / "sub-2" / "anat").mkdir(parents=True)
    (tmp_path / "study" / "sub-2" / "anat" / "sub-2_T1w.nii.gz").write_text("no image")
    return tmp_path / "study"


def test_weights_of_a_training_run_by_the_bundle_of_their_task(tmp_path):
    for task in ("segment", "classify"):
        model = load_model(str(saved(tmp_path / task, task)), tmp_path / "work")
        assert (model.task, model.bundle) == (task, ROOT / "bundles" / f"sa_swin_{task}")
        assert model.settings["spacing"] == 6.0
        assert model.seen[0] == "classify, training list: 1 subjects, label: class"


def test_a_zip_runs_by_its_own_configs_and_must_be_as_it_was_built(packages, tmp_path):
    model = load_model(str(packages["segment"]), tmp_path / "work")
    assert model.bundle.name == "sa_swin_segment"
    assert model.bundle.is_relative_to(tmp_path / "work" / "packages")
    assert (model.bundle / "configs" / "inference.yaml").is_file()
    assert model.checkpoints == (model.bundle / "models" / "model.pt",)
    spoilt = tmp_path / "sa_swin_segment.zip"
    shutil.copy(packages["segment"], spoilt)
    with zipfile.ZipFile(spoilt, "a") as archive:
        archive.writestr("sa_swin_segment/custom/more.py", "x = 1")
    with pytest.raises(UserError, match="not as it was built"):
        load_model(str(spoilt), tmp_path / "work")


def test_packages_of_one_name_stay_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("sa_swin.app.models.verify", lambda files: [])
    paths = []
    for name, change in (("fold0", spread_out), ("fold1", lambda network: None)):
        weights = saved(tmp_path / name, "segment", change) / "model.pt"
        paths.append(str(tmp_path / name / "sa_swin_segment.zip"))
        with zipfile.ZipFile(paths[-1], "w") as archive:
            archive.write(weights, "sa_swin_segment/models/model.pt")
    model = wanted_models(paths, (), tmp_path / "work")["segment"]
    assert [weights_digest(path) for path in model.checkpoints] == list(model.digests)
    assert len(set(model.digests)) == 2


def test_what_other_weights_have_left_behind_is_not_taken(tmp_path, monkeypatch):
    """A try with one network was killed; that with another stops before its first scan."""
    image = tmp_path / "study" / "sub-1" / "anat" / "sub-1_T1w.nii.gz"
    write_nifti(image, np.zeros((4, 4, 4), np.float32))
    scan = AppScan(("sub-1/anat/sub-1_T1w.nii.gz",), "sub-1", "")
    models = [
        load_model(str(saved(tmp_path / name, "classify", change)), tmp_path / "work")
        for name, change in (("one", lambda network: None), ("other", spread_out))
    ]

    def leaves(command):
        output = Path(command[command.index("--output_dir") + 1])
        output.mkdir(parents=True, exist_ok=True)
        entry = {
            "image": str(image),
            "stamp": stamp({"image": [str(image)]}),
            "row": {"probability_1": 0.9},
            "files": [],
        }
        (output / "finished.jsonl").write_text(json.dumps({"settings": "x"}) + "\n" + json.dumps(entry) + "\n")
        return ""

    monkeypatch.setattr("sa_swin.app.models._run", leaves)
    arguments = ([scan], tmp_path / "study", tmp_path / "work", "found", False)
    assert predict(models[0], *arguments) == {"sub-1": {"probability_1": 0.9}}
    monkeypatch.setattr("sa_swin.app.models._run", lambda command: "error: no memory")
    assert predict(models[0], *arguments) == {"sub-1": {"probability_1": 0.9}}  # its own, finished before
    with pytest.raises(UserError, match="could not be used: no memory"):
        predict(models[1], *arguments)
    os.utime(image, ns=(1, 1))
    with pytest.raises(UserError, match="could not be used: no memory"):  # of the image as it was
        predict(models[0], *arguments)


def test_what_is_no_weights_of_these_tasks_is_refused(tmp_path):
    with pytest.raises(UserError, match="weights of pretraining"):
        load_model(str(saved(tmp_path / "p", "pretrain")), tmp_path)
    (tmp_path / "other").mkdir()
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other" / "model.pt")
    with pytest.raises(UserError, match="no network of this project"):
        load_model(str(tmp_path / "other"), tmp_path)


def test_probabilities_say_what_they_were_calibrated_on(tmp_path):
    plain = load_model(str(saved(tmp_path / "a", "classify")), tmp_path)
    fitted = load_model(str(saved(tmp_path / "b", "classify", calibrated, class_names=["well", "ill"])), tmp_path)
    assert plain.calibration.startswith("not calibrated")
    assert "subjects: 2, temperature 1.5" in fitted.calibration
    found = class_figures({"probability_0": 0.25, "probability_1": 0.75}, fitted)["classes"]
    assert found["probability"] == {"well": 0.25, "ill": 0.75}
    assert found["likeliest"] == "ill"


@pytest.mark.parametrize("names", [["brain", "core"], ["brain", "core", "oedema"]])
def test_lesions_have_a_mask_a_table_of_names_and_probabilities(tmp_path, names):
    model = load_model(str(saved(tmp_path / "w", "segment", num_classes=len(names), class_names=names)), tmp_path)
    object.__setattr__(model, "settings", {**model.settings, "num_classes": len(names)})
    shares = np.random.default_rng(0).random((4, 5, 6, len(names))).astype(np.float32)
    row = {"pred": write_nifti(tmp_path / "pred.nii.gz", shares.argmax(-1).astype(np.uint8))}
    row |= {"probability": write_nifti(tmp_path / "probability.nii.gz", shares)}
    row |= {"disagreement": write_nifti(tmp_path / "disagreement.nii.gz", shares[..., 0] / 2)}
    scan = AppScan(("sub-1/anat/sub-1_T1w.nii.gz",), "sub-1", "")
    files = {path.name: path for path in write_lesions(scan, tmp_path / "out", row, model)}
    assert files["sub-1_desc-lesion_dseg.tsv"].read_text().splitlines()[1:] == [
        f"{index}\t{name}" for index, name in list(enumerate(names))[1:]
    ]
    kept = nib.load(files["sub-1_desc-lesion_probseg.nii.gz"]).get_fdata()
    np.testing.assert_allclose(kept.reshape(4, 5, 6, -1), shares[..., 1:], rtol=1e-6)
    spread = nib.load(files["sub-1_desc-disagreement_stat.nii.gz"]).get_fdata()
    np.testing.assert_allclose(spread, shares[..., 0] / 2, rtol=1e-6)
    about = json.loads(files["sub-1_desc-lesion_probseg.json"].read_text())
    assert (about["LabelMap"], about["Weights"]) == (names[1:], model.digests[0])
    assert np.array_equal(nib.load(files["sub-1_desc-lesion_dseg.nii.gz"]).get_fdata(), shares.argmax(-1))


@pytest.mark.parametrize(
    ("task", "names"), [("segment", ["background", "core"]), ("classify", ["well", "ill", "x", "y"])]
)
def test_each_class_has_a_name_whatever_the_datalist_said(tmp_path, task, names):
    model = load_model(str(saved(tmp_path / "w", task, class_names=names)), tmp_path)
    object.__setattr__(model, "settings", {**model.settings, "num_classes": 3})
    assert model.names == [*names, "class 2"][:3]
    object.__setattr__(model, "settings", {"num_classes": 3})
    assert model.names == ["background" if task == "segment" else "class 0", "class 1", "class 2"]
    if task == "segment":
        found = lesion_figures({"findings": [{"class": 2}], "volume_ml_class2": 3.0}, model)
        assert (found["findings"], found["lesions"][1]["volume_ml"]) == ([{"class": "class 2"}], 3.0)


def test_weights_of_one_task_are_used_together(tmp_path):
    paths = [
        saved(tmp_path / name, "segment", scaled) for name, scaled in (("a", spread_out), ("b", lambda network: None))
    ]
    models = wanted_models([*map(str, paths), str(saved(tmp_path / "c", "classify"))], (), tmp_path / "work")
    model = models["segment"]
    assert model.checkpoints == tuple(path / "model.pt" for path in paths)
    assert len(set(model.digests)) == 2
    assert model.about()["sha256"] == list(model.digests)
    assert len(models["classify"].checkpoints) == 1
    assert model.figures() == ""
    (paths[0] / "conformal.json").write_text("{}")
    assert model.figures() == "{}"


def test_intervals_and_sets_are_among_the_figures(tmp_path):
    model = load_model(str(saved(tmp_path / "w", "segment")), tmp_path)
    doubt = {"volume_low_class1": 2.0, "volume_high_class1": 5.0, "side_set_class1": "left", "cannot_tell_class1": ""}
    (lesion,) = lesion_figures({"volume_ml_class1": 3.0, "coverage": 0.9, **doubt}, model)["lesions"]
    assert (lesion["volume_low"], lesion["volume_high"], lesion["side_set"]) == (2.0, 5.0, "left")
    told = "".join(lesion_section({"lesions": [lesion], "findings": []}, None))
    assert "volume low" in told
    assert "90% have their volume between low and high" in told
    assert "hold each by itself" in told
    classes = class_figures(
        {
            "probability_0": 0.5,
            "probability_1": 0.5,
            "class_set": "0 or 1",
            "cannot_tell": "it may be any",
            "coverage": 0.9,
        },
        load_model(str(saved(tmp_path / "c", "classify")), tmp_path),
    )
    told = "".join(class_section(classes, None))
    assert "0 or 1" in told
    assert '<p class="warn">Cannot tell: it may be any.</p>' in told


def test_figures_of_lesions_name_their_class(tmp_path):
    model = load_model(str(saved(tmp_path / "w", "segment")), tmp_path)
    row = {
        "findings_class1": 1,
        "volume_ml_class1": 3.0,
        "side_class1": "left",
        "findings": [{"class": 1, "volume_ml": 3}],
    }
    found = lesion_figures(row, model)
    assert found["lesions"][0]["class"] == "lesion"
    assert found["lesions"][0]["side"] == "left"
    assert found["findings"] == [{"class": "lesion", "volume_ml": 3}]


def test_weights_that_do_not_fit_what_is_asked_are_refused(study, tmp_path, capsys):
    one = saved(tmp_path / "a", "segment")
    scans = saved(tmp_path / "ct", "classify", modality="CT")
    for words, message in (
        ((one, "--image", "T1w", "T1w"), "takes 1 channel(s)"),
        ((scans, "--what", "asymmetry", "classify"), "is for MR"),
        ((one, scans), "are of MR and of CT"),
        ((one, "--modality", "CT"), "are of MR and of CT"),
        ((one, "--what", "classify"), "--what classify needs --weights"),
    ):
        assert app(study, tmp_path / "out", "participant", "--weights", *words) == 2
        assert message in capsys.readouterr().err


def test_weights_say_which_images_they_take(study, tmp_path, capsys):
    work = tmp_path / "work"
    model = wanted_models([str(saved(tmp_path / "a", "segment", sequences=["FLAIR"]))], (), work)
    assert wanted_images((), model, None) == ("FLAIR",)
    assert capsys.readouterr().err == ""
    assert wanted_images(("acq-3d_FLAIR",), model, None) == ("acq-3d_FLAIR",)
    assert capsys.readouterr().err == ""
    assert wanted_images(("T1w",), model, None) == ("T1w",)
    assert "channel 1 is T1w; " in (told := capsys.readouterr().err)
    assert told.endswith("was trained on FLAIR\n")
    assert wanted_images((), wanted_models([str(saved(tmp_path / "b", "segment"))], (), work), None) == ("T1w",)


def test_a_norm_of_another_sequence_is_told(capsys):
    norm = SimpleNamespace(settings={"sequence": "FLAIR"})
    assert wanted_images((), {}, norm) == ("FLAIR",)
    assert wanted_images(("acq-3d_FLAIR",), {}, norm) == ("acq-3d_FLAIR",)
    assert capsys.readouterr().err == ""
    assert wanted_images(("T1w",), {}, norm) == ("T1w",)
    assert capsys.readouterr().err == "warning: channel 1 is T1w; the norm was made of FLAIR\n"


@pytest.mark.slow
def test_weights_add_masks_and_classes_and_a_bad_head_is_named(study, packages, tmp_path, capsys):
    weights = [saved(tmp_path / "s", "segment"), saved(tmp_path / "c", "classify", calibrated)]
    output = tmp_path / "out"
    words = ("participant", "--what", "segment", "classify", "--weights", *weights)
    assert app(study, output, *words) == 1
    told = capsys.readouterr().out
    assert "1 of 2 scans done" in told
    assert "sub-2_T1w.nii.gz" in told
    found = json.loads((output / "sub-1/anat/sub-1_desc-summary.json").read_text())
    assert sum(found["classes"]["probability"].values()) == pytest.approx(1)
    assert {model["task"] for model in found["weights"]} == {"segment", "classify"}
    assert "asymmetry" not in found
    image, mask = (
        nib.load(next(path.glob("sub-1_*.nii.gz"))) for path in (study / "sub-1/anat", output / "sub-1/anat")
    )
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-6)
    shares = predicted("segment", weights[0], study, tmp_path, "--save_probabilities", "True")
    wanted = nib.load(next(shares.rglob("*_probability.nii.gz"))).get_fdata()[..., 1]
    kept = nib.load(output / "sub-1/anat/sub-1_desc-lesion_probseg.nii.gz").get_fdata()
    assert np.ptp(wanted) > 0
    np.testing.assert_allclose(kept, wanted, atol=1e-6)
    with (predicted("classify", weights[1], study, tmp_path) / "cases.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert found["classes"]["probability"] == pytest.approx(
        {name: float(row[f"probability_{i}"]) for i, name in enumerate(found["classes"]["probability"])}, abs=1e-6
    )
    page = (output / "sub-1.html").read_text()
    assert "calibrated (validation cases of the training, subjects: 2" in page
    assert "classify, training list: 1 subjects" in page
    assert not (output / ".work").exists()
    (study / "sub-2/anat/sub-2_T1w.nii.gz").unlink()
    assert app(study, output, *words) == 0
    assert "done before" in capsys.readouterr().out
