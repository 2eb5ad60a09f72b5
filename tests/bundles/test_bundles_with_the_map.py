"""The asymmetry map as a channel, from training to prediction."""

import sys

import pytest
import torch
from bundle_configs import made

from custom.support.errors import root_cause
from custom.weights.settings import settings_in


@pytest.fixture(autouse=True)
def hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_weights_say_that_they_see_the_map_and_the_prediction_makes_it(task, tiny_cohort, tmp_path):
    training = made(task, "train", tiny_cohort, tmp_path, asymmetry_map=True, max_epochs=1, limit=2)
    training.initialize()
    training.run()
    weights = tmp_path / "models" / "model.pt"
    assert settings_in(weights)["asymmetry_map"] is True
    assert torch.load(weights)["swinViT.patch_embed.proj.weight"].shape[1] == 2

    output = tmp_path / "out"
    inference = made(task, "inference", tiny_cohort, output, checkpoint=str(weights))
    inference.initialize()
    case = next(iter(inference.parser.get_parsed_content("dataset")))
    assert case["image"].shape[0] == 4
    inference.run()
    assert sorted(output.rglob("*_pred.nii.gz" if task == "segment" else "cases.csv"))

    other = made(task, "inference", tiny_cohort, output, checkpoint=str(weights), asymmetry_map=False)
    other.initialize()
    with pytest.raises(RuntimeError) as caught:
        other.run()
    assert "asymmetry_map True, here False" in str(root_cause(caught.value))


@pytest.mark.parametrize(
    ("task", "options", "mapped"),
    [
        ("classify", {}, True),
        ("classify", {"modality": "CT"}, False),
        ("classify", {"symmetry": "none"}, False),
        ("classify", {"asymmetry_map": False}, False),
        ("classify", {"pretrained": "painted"}, False),
        ("classify", {"pretrained": "default"}, True),
        ("segment", {}, False),
    ],
)
def test_a_classifier_of_mr_from_scratch_sees_the_map(task, options, mapped, tiny_cohort, tmp_path):
    training = made(task, "train", tiny_cohort, tmp_path, **options)
    training.initialize()
    assert training.parser.get_parsed_content("asymmetry_map") is mapped
    network = training.parser.get_parsed_content("network_def")
    assert network.swinViT.patch_embed.proj.in_channels == 1 + mapped
