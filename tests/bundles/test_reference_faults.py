"""What the reference repository gets wrong (method.md), one claim per fault that ours does not."""

import ast
import csv
import inspect
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from torch import nn

from custom.losses import PretextLoss, symmetry_loss
from custom.networks.classifier import SASwinClassifier
from custom.networks.heads import pool
from custom.networks.pretrainer import SASwinPretrainer
from custom.networks.segmenter import SASwinUNETR
from custom.symmetry import LATERAL_AXIS, mirror
from custom.transforms.contract import InputContract
from custom.weights.settings import carrying
from custom.weights.transfer import transfer
from sa_swin.phantom.cohort import datalists

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("pretrain", "classify", "segment")


def sources():
    return {path: path.read_text() for path in sorted((ROOT / "custom").rglob("*.py"))}


def configurations():
    return {path: path.read_text() for path in sorted((ROOT / "bundles").glob("*/configs/*.yaml"))}


# 1. The flip is front-back, not left-right.


def test_1_the_mirror_crosses_left_and_right_and_keeps_front_and_back():
    batch = torch.zeros(1, 1, 4, 5, 6)
    batch[0, 0, 0, 1, 2] = 1
    assert mirror(batch).nonzero().tolist() == [[0, 0, 3, 1, 2]]


def test_1_one_function_alone_flips():
    flips = {
        path.name
        for path, text in sources().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and node.attr in ("flip", "flipud", "fliplr")
    }
    assert not {
        name
        for name in flips
        if name in {f"{m}.py" for m in ("networks", "saca", "losses", "views", "transforms", "inferers")}
    }
    assert "symmetry.py" in flips


def test_1_the_bundles_flip_pairs_along_the_lateral_axis_only():
    for path, text in configurations().items():
        transforms = yaml.safe_load(text).get("train", {}).get("preprocessing", {}).get("transforms", [])
        axes = {t["spatial_axis"] for t in transforms if isinstance(t, dict) and t["_target_"] == "RandFlipd"}
        assert axes <= {LATERAL_AXIS}, path


# 2. Pretraining without its method, weights that do not fit, an inverted label, any loss name accepted.


def test_2_pretraining_by_default_has_the_cross_attention_and_four_losses():
    config = yaml.safe_load((ROOT / "bundles/sa_swin_pretrain/configs/train.yaml").read_text())
    defaults = {"symmetry": "'saca'", "objective": "'paper'", "loss_weights": "{}"}
    assert {name: config[name] for name in defaults} == {n: f"$@weights.get('{n}', {v})" for n, v in defaults.items()}
    loss = PretextLoss("paper", {})
    assert [task for task, weight in loss.weights.items() if weight] == [
        "inpainting",
        "rotation",
        "contrastive",
        "symmetry",
    ]


@pytest.mark.parametrize("target", [SASwinClassifier, SASwinUNETR])
def test_2_pretrained_weights_load_into_fine_tuning_whole(target, small):
    assert transfer(target(**small), SASwinPretrainer(**small).state_dict()).share == 1


def test_2_the_three_bundles_share_the_sizes_of_the_encoder():
    sizes = {
        tuple(
            yaml.safe_load((ROOT / f"bundles/sa_swin_{task}/configs/train.yaml").read_text())[k]
            for k in ("feature_size", "window_size")
        )
        for task in TASKS
    }
    assert len(sizes) == 1


def test_2_healthy_pairs_attract_and_abnormal_ones_repel():
    embedding = torch.tensor([[1.0, 0.5]], requires_grad=True)
    mirrored = torch.tensor([[0.5, 1.0]])
    for healthy, sign in ((True, 1), (False, -1)):
        asymmetry = 1 - nn.functional.cosine_similarity(embedding, mirrored)
        (gradient,) = torch.autograd.grad(symmetry_loss(asymmetry, torch.tensor([healthy])), embedding)
        moved = embedding - 0.01 * gradient
        before, after = (nn.functional.cosine_similarity(e, mirrored).item() for e in (embedding, moved))
        assert sign * (after - before) > 0


def test_2_an_unknown_loss_name_is_refused():
    with pytest.raises(ValueError, match="unknown objective 'simsiam'"):
        PretextLoss("simsiam")


# 3. The cross-attention fails on ordinary input, and inference has no counterpart.


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("network", [SASwinClassifier, SASwinUNETR])
def test_3_any_batch_size_goes_through_the_cross_attention(network, batch, small):
    assert len(network(**small).eval()(torch.randn(batch, 2, 64, 32, 32))) == batch


@torch.no_grad()
def test_3_any_number_of_tokens_goes_through_the_cross_attention(small):
    network = SASwinClassifier(**small).eval()
    for size in ((64, 32, 32), (64, 64, 32)):
        assert network(torch.randn(1, 2, *size)).shape == (1, 2)


@pytest.mark.parametrize("task", TASKS)
def test_3_inference_makes_the_counterpart_in_its_preprocessing(task, tiny_cohort):
    config = yaml.safe_load((ROOT / f"bundles/sa_swin_{task}/configs/inference.yaml").read_text())
    assert [step["_target_"] for step in config["preprocessing"]["transforms"]] == ["custom.transforms.InputContract"]
    contract = InputContract(spacing=6, spatial_size=(32, 64, 32), align=False)
    pair = contract({"image": str(tiny_cohort / "sub-1.nii.gz")})["image"].as_tensor()
    assert torch.equal(pair[1:], mirror(pair[:1]))


# 4. Heads on one corner token, a temperature that is a stray parameter.


def test_4_heads_take_the_mean_of_all_tokens():
    features = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    assert pool(features).tolist() == [[3.5]]


@torch.no_grad()
@pytest.mark.parametrize("readout", ["places", "paper"])
def test_4_every_token_reaches_the_heads(small, readout):
    network = SASwinClassifier(symmetry="none", readout=readout, **small).eval()
    scales = [torch.randn(1, 12 * 2**scale, 2, 1, 1) for scale in network.head.scales]

    def read(features):
        return network.head([(x, None) for x in features], features[-1])

    for scale, place in itertools.product(range(len(scales)), (0, 1)):
        changed = [features.clone() for features in scales]
        changed[scale][:, :, place] += 1
        assert not torch.allclose(read(changed), read(scales))


def test_4_the_losses_have_no_parameters_and_the_temperature_is_a_number():
    loss = PretextLoss("paper", temperature=0.2)
    assert not list(loss.parameters())
    assert loss.temperature == 0.2
    for path, text in sources().items():
        assert "nn.Parameter(" not in text, path


# 5. Resuming, dropped batches, ungathered AUC, fixed devices, anomaly detection, a CT window on MR, foreground crops.


def test_5_no_device_is_written_into_the_library():
    for path, text in sources().items():
        assert not [word for word in (".cuda(", '"cuda:', "'cuda:", 'to("cuda', 'device="cuda') if word in text], path


def test_5_anomaly_detection_is_off():
    for path, text in {**sources(), **configurations()}.items():
        assert "anomaly" not in text, path
    assert not torch.is_anomaly_enabled()


def test_5_no_batch_is_dropped_and_no_foreground_is_cropped():
    for path, text in {**sources(), **configurations()}.items():
        assert "drop_last: true" not in text, path
        assert "drop_last=True" not in text, path
        assert "CropForeground" not in text, path


def test_5_mr_gets_no_ct_window():
    assert inspect.signature(InputContract).parameters["modality"].default == "MR"
    for path, text in configurations().items():
        assert yaml.safe_load(text).get("modality", "'MR'").count("'MR'") == 1, path  # the default


@pytest.fixture
def evaluated(tiny_cohort, tmp_path):
    """Evaluate an untrained classifier on the two test cases of a cohort, with batches of four for training."""
    bundle = ROOT / "bundles" / "sa_swin_classify"
    sizes = {
        "feature_size": 12,
        "window_size": 4,
        "spacing": 6.0,
        "spatial_size": [32, 64, 32],
        "num_workers": 0,
        "align": False,
    }
    (tmp_path / "models").mkdir()
    network = SASwinClassifier(feature_size=12, window_size=4)
    contract = {"modality": "MR", "in_channels": 1, "spacing": 6.0, "spatial_size": [32, 64, 32]}
    torch.save(carrying(network.state_dict(), settings=contract), tmp_path / "models" / "model.pt")
    workflow = ConfigWorkflow(
        [str(bundle / "configs" / f"{name}.yaml") for name in ("train", "evaluate")],
        logging_file=False,
        workflow_type="train",
        **sizes,
        device="$torch.device('cpu')",
        bundle_root=str(bundle),
        dataset_dir=str(tiny_cohort),
        output_dir=str(tmp_path),
        ckpt_dir=str(tmp_path / "models"),
        run=["$@validate::evaluator.run()"],
    )
    workflow.initialize()
    workflow.run()
    with (tmp_path / "cases.csv").open() as file:
        return list(csv.DictReader(file)), json.loads((tmp_path / "cases.json").read_text())["metrics"]


def test_5_a_test_set_smaller_than_a_batch_is_evaluated_whole_and_the_auc_is_of_its_table(evaluated):
    rows, metrics = evaluated
    assert [row["subject"] for row in rows] == ["sub-6", "sub-7"]
    assert metrics["n"] == 2
    healthy, patient = (float(row["probability_1"]) for row in rows)
    assert metrics["auc_class1"] == float(np.heaviside(patient - healthy, 0.5))


# (Resuming and the AUC over ranks: tests/evaluation/test_case_table.py. The plane after pads and crops:
# tests/transforms/test_contract.py.)

# 6. Leakage between pretraining and the downstream tasks, and between scans of a subject.


@pytest.mark.parametrize("seed", [0, 1])
def test_6_the_built_in_cohort_has_one_split_by_subject_for_all_three_bundles(seed):
    participants = [
        {
            "participant_id": f"sub-{i:03d}",
            "diagnosis": "healthy" if i % 2 else "tumour",
            "healthy": bool(i % 2),
            "side": "left",
            "site": "north",
            "anatomy": 0,
            "lesion_ml": 0.0,
        }
        for i in range(40)
    ]
    lists = datalists(participants, ("T1w",), seed, (0.6, 0.15, 0.25))
    where = {}
    for sections in lists.values():
        for section in ("training", "validation", "testing"):
            for case in sections[section]:
                where.setdefault(case["subject"], set()).add(section)
    assert len(where) == 40
    assert all(len(sections) == 1 for sections in where.values())
    assert all(lists["segment"][section] for section in ("training", "validation", "testing"))
    for section in ("training", "validation", "testing"):
        assert {case["healthy"] for case in lists["classify"][section]} == {True, False}
