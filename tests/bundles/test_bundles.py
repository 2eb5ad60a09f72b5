import csv
import json
import os
import re
import shutil
import sys
from pathlib import Path

import nibabel as nib
import pytest
import torch
from bundle_configs import ROOT, TASKS, WORKFLOWS, configs, made, read
from ignite.engine import Events
from monai.bundle import verify_metadata, verify_net_in_out
from monai.bundle.config_parser import ConfigParser

from custom.evaluation.case_table import CalibrationFit, CaseTable
from custom.evaluation.inferers import MirroredSlidingWindow
from custom.support.errors import advice, root_cause
from custom.support.run_record import of_weights
from custom.training.best_weights import BestWeights
from custom.weights.settings import Weights, carrying

SCHEMA = Path(os.environ.get("SA_SWIN_SCHEMA", ROOT.parent / "shared" / "schema" / "meta_schema_20240725.json"))


def save_weights(bundle, path):
    """Weights of a workflow's network, as its training would leave them."""
    settings = bundle.parser.get_parsed_content("settings")
    state = bundle.parser.get_parsed_content("network_def").state_dict()
    torch.save(carrying(state, settings=of_weights(settings)), path)


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
    """The settings that stand above `bundle_root`: names, and values as they stand there."""
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
    differing = {name for name in both if str(training[name]) not in str(inference[name])}
    assert differing <= {"untrusted", "num_workers"}
    assert both >= {"modality", "spacing", "symmetry"}


@pytest.mark.parametrize("task", TASKS)
def test_training_and_inference_build_the_same_network_and_the_same_input(task):
    training, inference = read(task, "train"), read(task, "inference")
    assert training["network_def"] == inference["network_def"]
    contract = {k: v for k, v in training["contract"].items() if k not in ("label_key", "num_classes")}
    assert inference["preprocessing"] == {"_target_": "Compose", "transforms": [contract]}


@pytest.mark.parametrize("task", TASKS)
def test_training_and_validation_run_in_the_precision_that_is_asked_for(
    task, tiny_cohort, tmp_path, monkeypatch, convolved_in
):
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
    assert convolved_in == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in bundle.parser.get_parsed_content("network_def").parameters())


@pytest.mark.parametrize("task", TASKS)
def test_inference_runs_in_the_precision_that_is_asked_for(task, tiny_cohort, tmp_path):
    bundle = made(task, "inference", tiny_cohort, tmp_path, precision="bf16")
    assert bundle.parser["evaluator"]["inferer"] == "@inferer"
    assert bundle.parser.get_parsed_content("inferer").precision == "bf16"


def test_the_segmenters_windows_can_be_those_of_the_mirrored_brain_too(tiny_cohort, tmp_path):
    changes = {"mirror_tta": True, "save_asymmetry": True}
    bundle = made("segment", "inference", tiny_cohort, tmp_path, checkpoint=str(tmp_path / "model.pt"), **changes)
    save_weights(bundle, tmp_path / "model.pt")
    bundle.initialize()
    bundle.run()
    assert isinstance(bundle.parser.get_parsed_content("inferer").inferer, MirroredSlidingWindow)
    assert len(list(tmp_path.rglob("*_asymmetry.nii.gz"))) == len(list(tmp_path.rglob("*_pred.nii.gz"))) == 1


def test_several_weights_leave_a_map_of_their_disagreement_and_intervals_where_there_are_figures(tiny_cohort, tmp_path):
    paths = [str(tmp_path / f"fold{number}.pt") for number in range(2)]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        save_weights(made("segment", "inference", tiny_cohort, tmp_path), path)
    found = {"volume": {"radius": 0.1, "subjects": 20, "usual": [0.0, 1e6]}, "side": {"radius": None, "subjects": 3}}
    figures = {"coverage": 0.9, "subjects": 20, "lesions": {"1": found}, "settings": {"overlap": 0.5}}
    figures["weights_sha256"] = Weights(paths).digest()
    (tmp_path / "conformal.json").write_text(json.dumps(figures))
    bundle = made("segment", "inference", tiny_cohort, tmp_path, checkpoint=paths, save_probabilities=True)
    bundle.initialize()
    bundle.run()
    (spread,) = (nib.load(path) for path in tmp_path.rglob("*_disagreement.nii.gz"))
    (shares,) = (nib.load(path) for path in tmp_path.rglob("*_probability.nii.gz"))
    assert spread.shape[:3] == shares.shape[:3]
    _, finished = map(json.loads, (tmp_path / "finished.jsonl").read_text().splitlines())
    written = {Path(path).name for path in finished["files"]}
    assert written == {path.name for path in tmp_path.rglob("*.nii.gz")}  # else a lost one would not be made again
    assert len(written) == 3
    assert 0 < spread.get_fdata().max() <= 0.5 + 1e-5
    with (tmp_path / "cases.csv").open() as file:
        (row,) = csv.DictReader(file)
    volume, low, high = (float(row[f"volume_{name}_class1"]) for name in ("ml", "low", "high"))
    assert low < volume < high
    assert row["cannot_tell_class1"] == "side: 3 validation subjects are too few"
    assert not (tmp_path / "failed.csv").exists()


def test_every_knob_is_used():
    for task in TASKS:
        for name in ("train", "inference"):
            config = read(task, name)
            text = "".join(Path(path).read_text() for path in configs(task, name))
            assert not [knob for knob in knobs(config) if f"@{knob}" not in text], (task, name)


def test_every_workflow_has_what_the_model_zoo_starts_it_by_and_says_what_it_gives():
    for task in TASKS:
        for names in WORKFLOWS.values():
            merged = ConfigParser.load_config_files(configs(task, *names))
            assert merged["initialize"]
            assert merged["run"]
        metadata = json.loads((ROOT / "bundles" / f"sa_swin_{task}" / "configs" / "metadata.json").read_text())
        outputs = metadata["network_data_format"]["outputs"]["pred"]
        assert len(outputs["channel_def"]) == 2
        assert (metadata["supported_apps"] == {}) == (task == "pretrain")  # the label server has the two others


def test_layers_change_only_what_training_has():
    for task in TASKS:
        training = ConfigParser(read(task, "train"))
        for layer in ("evaluate", "multi_gpu_train", "multi_gpu_evaluate"):
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
    assert kinds.index(CaseTable) < kinds.index(CalibrationFit) < kinds.index(BestWeights)
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
    "a volume that cannot be halved": (
        "classify",
        {},
        {"spatial_size": [48, 64, 64]},
        r"multiples of 32, .*got \(48, 64, 64\); give another --spatial_size",
    ),
    "an ROI that cannot be halved": (
        "segment",
        {},
        {"roi_size": [32, 48, 96]},
        r"multiples of 32, .*got \(32, 48, 64\); give another --roi_size",
    ),
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


def refusal(task, workflow, root, output, **changes):
    """The sentence that a run ends with; MONAI wraps what configs raise, the cause is what users see."""
    bundle = made(task, workflow, root, output, **changes)
    bundle.initialize()
    with pytest.raises(Exception) as raised:  # noqa: PT011
        bundle.run()
    return str(root_cause(raised.value))


@pytest.mark.parametrize("task", TASKS)
def test_an_evaluation_names_all_cases_that_it_cannot_take(task, tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    root = shutil.copytree(tiny_cohort, tmp_path / "cohort")
    lists = json.loads((root / "datalists" / f"{task}.json").read_text())
    images = [case["image"] for case in lists["training"]]
    for image in images:
        known = nib.load(root / image)
        nib.save(nib.Nifti1Image(0 * known.get_fdata(), known.affine), root / image)
    (root / "list.json").write_text(json.dumps({"testing": lists["training"]}))
    save_weights(made(task, "inference", root, tmp_path), tmp_path / "model.pt")
    changes = {"datalist": str(root / "list.json"), "checkpoint": str(tmp_path / "model.pt"), "cache_rate": 1.0}
    told = refusal(task, "evaluate", root, tmp_path, **changes)
    assert f"{len(images)} of {len(images)} cases cannot be taken" in told
    assert all(f"{image}: channel 0 of the image is constant" in told for image in images)


def test_a_case_that_is_held_in_memory_is_measured_as_one_that_is_read(tiny_cohort, tmp_path):
    save_weights(made("segment", "inference", tiny_cohort, tmp_path), tmp_path / "model.pt")
    tables = []
    for rate, workers in ((0.0, 0), (1.0, 0), (1.0, 2)):
        changes = {"checkpoint": str(tmp_path / "model.pt"), "cache_rate": rate, "num_workers": workers}
        bundle = made("segment", "evaluate", tiny_cohort, tmp_path, align=True, untrusted="found", **changes)
        bundle.initialize()
        bundle.run()
        (mask,) = tmp_path.rglob("*_pred.nii.gz")
        tables.append(((tmp_path / "cases.csv").read_text(), nib.load(mask).to_bytes()))
    assert tables[0] == tables[1] == tables[2]


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_an_evaluation_refuses_a_list_with_other_classes_than_those_of_the_weights(
    task, tiny_cohort, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    bundle = made(task, "inference", tiny_cohort, tmp_path)
    settings = of_weights(bundle.parser.get_parsed_content("settings"), class_names=["background", "tumour"])
    state = bundle.parser.get_parsed_content("network_def").state_dict()
    torch.save(carrying(state, settings=settings), tmp_path / "model.pt")
    lists = json.loads((tiny_cohort / "datalists" / f"{task}.json").read_text())
    (tmp_path / "list.json").write_text(json.dumps({"labels": {"0": "background", "1": "infarct"}} | lists))
    changes = {"datalist": str(tmp_path / "list.json"), "checkpoint": str(tmp_path / "model.pt")}
    told = refusal(task, "evaluate", tiny_cohort, tmp_path, **changes)
    assert "classes 0 background, 1 tumour; " in told
    assert "has 0 background, 1 infarct" in told


@pytest.mark.parametrize("workflow", ["evaluate", "inference"])
def test_weights_of_pretraining_are_used_one_at_a_time(workflow, tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    save_weights(made("pretrain", "inference", tiny_cohort, tmp_path), tmp_path / "model.pt")
    told = refusal("pretrain", workflow, tiny_cohort, tmp_path, checkpoint=[str(tmp_path / "model.pt")] * 2)
    assert told == "weights of pretraining are used one at a time, got 2: give one file"


def test_what_is_documented_keeps_the_tables_of_evaluation_and_prediction_apart():
    for page in (ROOT / "docs" / "how-to" / "training.md", *(ROOT / "bundles").glob("*/docs/README.md")):
        text = page.read_text().replace("\\\n", "")
        runs = re.findall(r"^python -m monai\.bundle run .*?(train|evaluate|inference)\.yaml['\"\]]* --bundle_root.*"
                          r"--output_dir (\S+)", text, re.MULTILINE)  # fmt: skip
        assert [name for name, _ in runs] == ["train", "evaluate", "inference"], page
        assert len({folder for _, folder in runs}) == 3, page


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
