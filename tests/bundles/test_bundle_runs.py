"""The whole line from the command line, on heads of `sa-swin phantom`."""

import contextlib
import csv
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_configs import ROOT, TASKS, TRAINING, WORKFLOWS, configs, overrides

from custom.networks.classifier import SASwinClassifier
from custom.weights.settings import carrying

pytestmark = pytest.mark.slow

CARRIED = ("spacing", "spatial_size", "roi_size", "feature_size", "window_size")


def command(*args, **options):
    """Run a module's command line with one thread, and return it when it is done."""
    words = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *args, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )


def bundle_run(task, workflow, root, output, **changes):
    """Run a workflow of a bundle from the command line, as a user does: what weights carry is not said again."""
    files = configs(task, *WORKFLOWS[workflow])
    settings = overrides(task, workflow, root, output)
    if workflow != "train":
        settings = {name: value for name, value in settings.items() if name not in {*CARRIED, *TRAINING}}
    options = {"config_file": files if len(files) > 1 else files[0], **settings, **changes}
    done = command("monai.bundle", "run", **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="session")
def heads(tmp_path_factory):
    """A cohort of eight synthetic heads at 4 mm: four or five for training, one or two to validate, two to test."""
    root = tmp_path_factory.mktemp("heads") / "cohort"
    done = command("sa_swin", "phantom", output=root, subjects=8, seed=0, spacing=4)
    assert done.returncode == 0, done.stderr
    return root


def held_out(heads, task):
    return json.loads((heads / "datalists" / f"{task}.json").read_text())["testing"]


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def progress(output):
    """Epochs done, best key metric and its epoch."""
    state = torch.load(output / "models" / "last.ckpt", weights_only=True)
    length = state["trainer"]["epoch_length"]
    steps, scheduled = state["trainer"]["iteration"], state["lr_scheduler"]["last_epoch"]
    return steps / length, *state["best_weights"].values(), scheduled / length


@pytest.fixture(scope="session", params=TASKS)
def trained(request, heads, tmp_path_factory):
    """A bundle trained for one epoch, resumed for a second, evaluated, and run: task, folder, progress."""
    task, output = request.param, tmp_path_factory.mktemp(request.param)
    # The search for the plane takes seconds per head: in one bundle only.
    changes = {"align": task == "segment"}
    bundle_run(task, "train", heads, output, max_epochs=1, val_interval=1, **changes)
    first = progress(output)
    bundle_run(task, "train", heads, output, max_epochs=2, val_interval=1, resume=True, **changes)
    bundle_run(task, "evaluate", heads, output, **changes)
    bundle_run(task, "inference", heads, output, output_dir=output / "inference", **changes)
    return task, output, first


def test_a_resumed_training_goes_on_where_it_stopped(trained):
    _, output, (epochs, best, _, schedule) = trained
    assert (epochs, schedule) == (1, 1)
    epochs, best_later, best_epoch, schedule = progress(output)
    assert (epochs, schedule) == (2, 2)
    assert not best_later < best or np.isnan(best)
    assert best_epoch in (1, 2)
    assert (output / "models" / "model.pt").is_file()


def test_the_whole_test_set_is_evaluated_and_summarised(trained, heads):
    task, output, _ = trained
    rows = table(output / "cases.csv")
    assert [row["subject"] for row in rows] == sorted(case["subject"] for case in held_out(heads, task))
    report = json.loads((output / "cases.json").read_text())
    assert report["metrics"]["n"] == len(rows)
    assert report["section"] == "testing"
    assert Path(report["checkpoint"]).is_file()
    figures = {"pretrain": "zero_shot_auc", "classify": "auc", "segment": "dice"}
    assert figures[task] in report["metrics"]


def test_inference_gives_a_result_for_every_case(trained, heads):
    task, output, _ = trained
    rows = table(output / "inference" / "cases.csv")
    assert [row["subject"] for row in rows] == sorted(case["subject"] for case in held_out(heads, task))
    if task == "pretrain":
        assert all(0 <= float(row["asymmetry"]) <= 2 for row in rows)
        assert not any("embedding" in name for name in rows[0])
        with np.load(output / "inference" / "embeddings.npz") as stored:
            assert stored["embedding"].shape == (len(rows), 512)
            assert stored["subject"].tolist() == [row["subject"] for row in rows]
    if task == "classify":
        assert all(float(row["probability_0"]) + float(row["probability_1"]) == pytest.approx(1) for row in rows)
    if task == "segment":
        for case in held_out(heads, task):
            image = nib.load(heads / case["image"])
            mask = nib.load(output / "inference" / case["image"].replace(".nii.gz", "_pred.nii.gz"))
            assert mask.shape == image.shape
            np.testing.assert_allclose(mask.affine, image.affine, atol=1e-3)
            assert set(np.unique(mask.dataobj)) <= {0, 1}


def test_pretrained_weights_go_into_both_tasks_from_the_command_line(heads, tmp_path):
    bundle_run("pretrain", "train", heads, tmp_path / "pretrain", max_epochs=1, limit=2)
    for task in ("classify", "segment"):
        weights = tmp_path / "pretrain" / "models" / "model.pt"
        done = bundle_run(
            task, "train", heads, tmp_path / task, max_epochs=1, limit=2, pretrained=weights, pretrained_minimum=1.0
        )
        found, wanted = (int(n) for n in done.stdout.split(" tensors matched")[0].split()[-1].split("/"))
        assert found == wanted > 100


def test_a_user_sees_one_sentence_and_a_failure(heads, tmp_path):
    options = {**overrides("classify", "train", heads, tmp_path), "datalist": tmp_path / "none.json"}
    done = command("monai.bundle", "run", config_file=configs("classify", "train")[0], **options)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("error: no datalist at")
    assert "Traceback" not in done.stderr


def test_inference_passes_over_a_bad_file_names_it_and_fails_at_the_end(heads, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    image = heads / held_out(heads, "classify")[0]["image"]
    shutil.copy(image, folder / "good.nii.gz")
    (folder / "bad.nii.gz").write_bytes(image.read_bytes()[:-2000])
    (tmp_path / "models").mkdir()
    settings = {"modality": "MR", "in_channels": 1, "spacing": 6.0, "spatial_size": [32, 64, 64]}
    state = carrying(SASwinClassifier(feature_size=12, window_size=4).state_dict(), settings=settings)
    torch.save(state, tmp_path / "models" / "model.pt")
    options = {**overrides("classify", "inference", folder, tmp_path), "datalist": None}
    done = command("monai.bundle", "run", config_file=configs("classify", "inference")[0], **options)
    assert done.returncode != 0
    *_, sentence, reason = done.stderr.splitlines()
    assert "1 of 2 cases failed" in sentence
    assert "bad.nii.gz: the header is there, but not all voxels" in reason
    assert "bad.nii.gz" in done.stderr.splitlines()[-1]
    assert [row["subject"] for row in table(tmp_path / "cases.csv")] == ["good"]


def test_a_run_that_contradicts_its_weights_ends_in_a_sentence_with_both_values(trained, heads):
    task, output, _ = trained
    options = {"config_file": configs(task, "inference")[0], "checkpoint": output / "models" / "model.pt"}
    options |= {"dataset_dir": heads, "output_dir": output / "refused"}
    for name, value, words in (("modality", "CT", "modality MR, here CT"), ("spacing", 3, "spacing 6.0, here 3")):
        done = command("monai.bundle", "run", **options, **{name: value})
        assert done.returncode == 1
        assert words in done.stderr.splitlines()[-1]
    assert not (output / "refused" / "cases.csv").exists()


@pytest.mark.parametrize("workflow", WORKFLOWS)
@pytest.mark.parametrize("task", TASKS)
def test_tracked_runs_end_finished(heads, tmp_path, task, workflow):
    if workflow != "train":
        bundle_run(task, "train", heads, tmp_path, max_epochs=1, limit=2)
    changes = {"max_epochs": 1, "limit": 2, "val_interval": 1} if workflow == "train" else {}
    tracked = {"output_dir": f"$'{tmp_path}/tracked'", "tracking": "mlflow", "run_name": workflow}
    bundle_run(task, workflow, heads, tmp_path, **changes, **tracked)
    with contextlib.closing(sqlite3.connect(tmp_path / "tracked" / "mlruns.db")) as database:
        states = database.execute("select name, status from runs").fetchall()
        logged = {name for (name,) in database.execute("select distinct key from metrics")}
    assert states == [(workflow, "FINISHED")]
    if workflow == "train":
        assert {"train_loss", {"pretrain": "neg_loss", "classify": "auc", "segment": "dice"}[task]} <= logged
