import contextlib
import csv
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Events
from monai.bundle import ConfigWorkflow, verify_metadata, verify_net_in_out
from monai.bundle.config_parser import ConfigParser

from custom.checkpoints import Checkpoints
from custom.errors import advice, root_cause
from custom.handlers import CalibrationFit, CaseTable
from custom.networks import SASwinClassifier

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = Path(os.environ.get("SA_SWIN_SCHEMA", ROOT.parent / "shared" / "schema" / "meta_schema_20240725.json"))
TASKS = ("pretrain", "classify", "segment")
WORKFLOWS = {"train": ("train",), "evaluate": ("train", "evaluate"), "inference": ("inference",)}
TINY = {"feature_size": 12, "window_size": 4, "spacing": 6.0, "spatial_size": [32, 64, 64], "num_workers": 0}
ROI = {"pretrain": {"roi_size": [32, 64, 64]}, "classify": {}, "segment": {"roi_size": [32, 64, 64]}}
TRAINING = {"batch_size": 2, "warmup_epochs": 0, "cache_rate": 0.0}


def configs(task, *names):
    return [str(ROOT / "bundles" / f"sa_swin_{task}" / "configs" / f"{name}.yaml") for name in names]


def read(task, name):
    return yaml.safe_load(Path(configs(task, name)[0]).read_text())


def overrides(task, workflow, root, output):
    """Settings of a small run on the CPU."""
    values = {
        **TINY,
        **ROI[task],
        "align": False,
        "dataset_dir": str(root),
        "bundle_root": str(ROOT / "bundles" / f"sa_swin_{task}"),
    }
    values |= {"output_dir": str(output), "ckpt_dir": str(output / "models")}
    if workflow == "inference":
        return values | {"datalist": str(root / "datalists" / f"{task}.json")}
    return values | TRAINING


def made(task, workflow, root, output, **changes):
    """A workflow as `python -m monai.bundle run` makes it."""
    kind = "infer" if workflow == "inference" else "train"
    settings = {**overrides(task, workflow, root, output), "device": "$torch.device('cpu')", **changes}
    return ConfigWorkflow(configs(task, *WORKFLOWS[workflow]), logging_file=False, workflow_type=kind, **settings)


@pytest.mark.parametrize("workflow", WORKFLOWS)
@pytest.mark.parametrize("task", TASKS)
def test_monai_finds_the_properties_it_looks_for(task, workflow, tiny_cohort, tmp_path):
    bundle = made(task, workflow, tiny_cohort, tmp_path)
    bundle.initialize()
    assert bundle.check_properties() == []


@pytest.mark.parametrize("task", TASKS)
def test_the_metadata_fits_monais_schema(task, tmp_path):
    pytest.importorskip("jsonschema")
    if not SCHEMA.is_file():
        pytest.skip(f"no schema at {SCHEMA}; give its place in SA_SWIN_SCHEMA")
    schema = shutil.copy(SCHEMA, tmp_path / "schema.json")
    verify_metadata(
        meta_file=str(ROOT / "bundles" / f"sa_swin_{task}" / "configs" / "metadata.json"), filepath=str(schema)
    )


@pytest.mark.parametrize("workflow", ["train", "inference"])
@pytest.mark.parametrize("task", TASKS)
def test_the_network_takes_and_gives_what_the_metadata_say(task, workflow):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(ROOT / "bundles" / f"sa_swin_{task}" / "configs" / "metadata.json"),
        config_file=configs(task, workflow),
        device="cpu",
        feature_size=12,
        window_size=4,
    )


def knobs(config):
    """The settings that stand above `bundle_root`: names and values."""
    names = list(config)
    return {name: config[name] for name in names[: names.index("bundle_root")]}


def test_what_pretrained_weights_depend_on_is_the_same_in_all_bundles():
    shared = [
        "modality",
        "in_channels",
        "spacing",
        "spatial_size",
        "align",
        "feature_size",
        "window_size",
        "depths",
        "num_heads",
        "symmetry",
    ]
    values = {
        (task, name): [knobs(read(task, name))[knob] for knob in shared]
        for task in TASKS
        for name in ("train", "inference")
    }
    assert len({json.dumps(value) for value in values.values()}) == 1, values


@pytest.mark.parametrize("task", TASKS)
def test_a_knob_of_training_and_inference_has_one_value(task):
    training, inference = knobs(read(task, "train")), knobs(read(task, "inference"))
    both = set(training) & set(inference)
    assert {name for name in both if training[name] != inference[name]} <= {"untrusted", "num_workers"}
    assert both >= {"modality", "spacing", "symmetry"}


@pytest.mark.parametrize("task", TASKS)
def test_training_and_inference_build_the_same_network_and_the_same_input(task):
    training, inference = read(task, "train"), read(task, "inference")
    assert training["network_def"].pop("use_checkpoint") == "@use_checkpoint"  # no part of the function
    assert training["network_def"] == inference["network_def"]
    contract = {k: v for k, v in training["contract"].items() if k not in ("label_key", "num_classes")}
    assert inference["preprocessing"] == {"_target_": "Compose", "transforms": [contract]}


@pytest.mark.parametrize("task", TASKS)
def test_training_and_validation_run_in_the_precision_that_is_asked_for(task, tiny_cohort, tmp_path, monkeypatch):
    computed = {True: set(), False: set()}
    linear = torch.nn.Linear.forward

    def noted(layer, inputs):
        result = linear(layer, inputs)
        computed[layer.training].add(result.dtype)
        return result

    monkeypatch.setattr(torch.nn.Linear, "forward", noted)
    changes = {"max_epochs": 1, "val_interval": 1, "limit": 2}
    bundle = made(task, "train", tiny_cohort, tmp_path, precision="bf16", **changes)
    bundle.initialize()
    bundle.run()
    assert computed == {True: {torch.bfloat16}, False: {torch.bfloat16}}
    assert all(p.dtype == torch.float32 for p in bundle.parser.get_parsed_content("network_def").parameters())


def test_every_knob_is_used():
    for task in TASKS:
        for name in ("train", "inference"):
            config = read(task, name)
            text = "".join(Path(path).read_text() for path in configs(task, name))
            assert not [knob for knob in knobs(config) if f"@{knob}" not in text], (task, name)


def test_layers_change_only_what_training_has():
    for task in TASKS:
        training = ConfigParser(read(task, "train"))
        for layer in ("evaluate", "multi_gpu_train"):
            ids = [key for key in read(task, layer) if "::" in key and "context" not in key and "output_dir" not in key]
            assert not [key for key in ids if key not in training and key.rsplit("::", 1)[0] not in training]


def test_the_advice_for_full_memory_names_knobs_that_work(tiny_cohort, tmp_path):
    sentence = advice(MemoryError())
    named = ["batch_size", "num_samples", "roi_size", "feature_size", "cache_rate", "num_workers"]
    assert set(named) <= set(knobs(read("segment", "train")))
    assert all(knob in sentence for knob in (*named, "--use_checkpoint True"))
    bundle = made("segment", "train", tiny_cohort, tmp_path, use_checkpoint=True)
    assert bundle.parser.get_parsed_content("network_def").swinViT.layers1[0].blocks[0].use_checkpoint


@pytest.mark.parametrize(
    ("changes", "enabled"), [({}, True), ({"calibrate": False}, False), ({"class_weights": [1.0, 2.0]}, False)]
)
def test_a_classifier_is_calibrated_on_each_validation_before_its_weights_are_saved(
    tiny_cohort, tmp_path, changes, enabled
):
    parser = made("classify", "train", tiny_cohort, tmp_path, **changes).parser
    parser.get_parsed_content("train::trainer")
    evaluator = parser.get_parsed_content("validate::evaluator")
    owners = [getattr(handler, "__self__", None) for handler, *_ in evaluator._event_handlers[Events.EPOCH_COMPLETED]]
    kinds = [type(owner) for owner in owners]
    assert kinds.index(CaseTable) < kinds.index(CalibrationFit) < kinds.index(Checkpoints)
    fit = owners[kinds.index(CalibrationFit)]
    assert bool(fit.enabled) == enabled
    assert fit.network is parser.get_parsed_content("network_def")


BAD_INPUT = {
    "an image is missing": (
        "classify",
        {"datalist": [{"image": "none.nii.gz", "label": 0}]},
        {},
        r"none.nii.gz: no such file",
    ),
    "the mask is missing": (
        "segment",
        {"datalist": [{"image": "sub-1.nii.gz", "label": "none.nii.gz"}]},
        {},
        "none.nii.gz: no such file",
    ),
    "too few channels": ("classify", {}, {"in_channels": 2}, r"expected 2 image file\(s\), one per channel, got 1"),
    "a label out of range": (
        "classify",
        {"datalist": [{"image": "sub-1.nii.gz", "label": 2}]},
        {},
        "label 2 is out of range",
    ),
    "an empty datalist": ("classify", {"datalist": []}, {}, "has no cases in 'training'"),
    "no datalist": ("classify", {}, {"datalist": "/nowhere/list.json"}, "no datalist at /nowhere/list.json"),
    "no healthy label": (
        "pretrain",
        {"datalist": [{"image": "sub-1.nii.gz"}]},
        {},
        "expected 'healthy' true or false, got None",
    ),
    "an unknown objective": ("pretrain", {}, {"objective": "papers"}, "unknown objective 'papers'"),
    "an unknown task": ("pretrain", {}, {"loss_weights": {"rotate": 1.0}}, r"unknown pretext task \['rotate'\]"),
    "an unknown variant": ("segment", {}, {"symmetry": "sacca"}, "sacca"),
    "an unknown modality": ("segment", {}, {"modality": "PET"}, "PET"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_before_training_with_a_sentence(case, tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    task, content, changes, sentence = BAD_INPUT[case]
    if "datalist" in content:
        path = tmp_path / "list.json"
        path.write_text(json.dumps({"training": content["datalist"], "validation": content["datalist"]}))
        changes = {**changes, "datalist": str(path)}
    bundle = made(task, "train", tiny_cohort, tmp_path, **changes)
    bundle.initialize()
    with pytest.raises(Exception) as raised:  # noqa: PT011  MONAI wraps what configs raise; the cause is what users see
        bundle.run()
    assert re.search(sentence, str(root_cause(raised.value)))
    assert not (tmp_path / "models").exists()


def test_the_label_free_objective_trains_without_labels(tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    path = tmp_path / "list.json"
    entries = [{"image": f"sub-{i}.nii.gz", "age": None} for i in range(2)]
    path.write_text(json.dumps({"training": entries, "validation": entries[:1]}))
    bundle = made(
        "pretrain",
        "train",
        tiny_cohort,
        tmp_path,
        datalist=str(path),
        objective="label_free",
        max_epochs=1,
        num_samples=1,
    )
    bundle.initialize()
    bundle.run()
    assert (tmp_path / "models" / "model.pt").is_file()


# ---- the whole line, on heads of custom.phantom


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
    """Run a workflow of a bundle from the command line, as a user does."""
    files = configs(task, *WORKFLOWS[workflow])
    options = {
        "config_file": files if len(files) > 1 else files[0],
        **overrides(task, workflow, root, output),
        **changes,
    }
    done = command("monai.bundle", "run", **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="session")
def heads(tmp_path_factory):
    """A cohort of eight synthetic heads at 4 mm: four or five for training, one or two to validate, two to test."""
    root = tmp_path_factory.mktemp("heads") / "cohort"
    done = command("custom.phantom", output=root, subjects=8, seed=0, spacing=4)
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
    return steps / length, state["best"], state["best_epoch"], scheduled / length


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


@pytest.mark.slow
def test_a_resumed_training_goes_on_where_it_stopped(trained):
    _, output, (epochs, best, _, schedule) = trained
    assert (epochs, schedule) == (1, 1)
    epochs, best_later, best_epoch, schedule = progress(output)
    assert (epochs, schedule) == (2, 2)
    assert not best_later < best or np.isnan(best)
    assert best_epoch in (1, 2)
    assert (output / "models" / "model.pt").is_file()


@pytest.mark.slow
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


@pytest.mark.slow
def test_inference_gives_a_result_for_every_case(trained, heads):
    task, output, _ = trained
    rows = table(output / "inference" / "cases.csv")
    assert [row["subject"] for row in rows] == sorted(case["subject"] for case in held_out(heads, task))
    if task == "pretrain":
        assert all(0 <= float(row["asymmetry"]) <= 2 for row in rows)
        assert "embedding_511" in rows[0]
    if task == "classify":
        assert all(float(row["probability_0"]) + float(row["probability_1"]) == pytest.approx(1) for row in rows)
    if task == "segment":
        for case in held_out(heads, task):
            image = nib.load(heads / case["image"])
            mask = nib.load(output / "inference" / case["image"].replace(".nii.gz", "_pred.nii.gz"))
            assert mask.shape == image.shape
            np.testing.assert_allclose(mask.affine, image.affine, atol=1e-3)
            assert set(np.unique(mask.dataobj)) <= {0, 1}


@pytest.mark.slow
def test_pretrained_weights_go_into_both_tasks_from_the_command_line(heads, tmp_path):
    bundle_run("pretrain", "train", heads, tmp_path / "pretrain", max_epochs=1, limit=2)
    for task in ("classify", "segment"):
        weights = tmp_path / "pretrain" / "models" / "model.pt"
        done = bundle_run(
            task, "train", heads, tmp_path / task, max_epochs=1, limit=2, pretrained=weights, pretrained_minimum=1.0
        )
        found, wanted = (int(n) for n in done.stdout.split(" tensors matched")[0].split()[-1].split("/"))
        assert found == wanted > 100


@pytest.mark.slow
def test_a_user_sees_one_sentence_and_a_failure(heads, tmp_path):
    options = {**overrides("classify", "train", heads, tmp_path), "datalist": tmp_path / "none.json"}
    done = command("monai.bundle", "run", config_file=configs("classify", "train")[0], **options)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("error: no datalist at")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_inference_passes_over_a_bad_file_names_it_and_fails_at_the_end(heads, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    image = heads / held_out(heads, "classify")[0]["image"]
    shutil.copy(image, folder / "good.nii.gz")
    (folder / "bad.nii.gz").write_bytes(image.read_bytes()[:-2000])
    (tmp_path / "models").mkdir()
    torch.save(SASwinClassifier(feature_size=12, window_size=4).state_dict(), tmp_path / "models" / "model.pt")
    options = {**overrides("classify", "inference", folder, tmp_path), "datalist": None}
    done = command("monai.bundle", "run", config_file=configs("classify", "inference")[0], **options)
    assert done.returncode != 0
    assert "1 of 2 cases failed" in done.stderr.splitlines()[-1]
    assert "bad.nii.gz" in done.stderr.splitlines()[-1]
    assert [row["subject"] for row in table(tmp_path / "cases.csv")] == ["good"]


@pytest.mark.slow
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
