import json
import sys

import pytest
import torch
from bundle_configs import made

from custom.support.errors import root_cause


def test_a_pretraining_on_painted_brains_needs_no_cohort_and_its_decoder_goes_into_the_segmenter(
    tissues, tiny_cohort, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    options = {"painted": 1.0, "objective": "painted", "anatomies": str(tissues), "painted_cases": [4, 6]}
    options |= {"max_epochs": 1, "num_samples": 1}
    bundle = made("pretrain", "train", tmp_path / "nowhere", tmp_path, **options)
    bundle.initialize()
    bundle.run()
    metrics = bundle.parser.get_parsed_content("validate::evaluator").state.metrics
    assert {"tissue", "lesion", "collapse", "scanner_icc", "scanner_icc_asymmetry"} <= set(metrics)
    assert -1 <= metrics["scanner_icc"] <= 1

    weights = tmp_path / "models" / "model.pt"
    segmenter = made(
        "segment", "train", tiny_cohort, tmp_path / "segment", pretrained=str(weights), roi_size=[32, 64, 64]
    )
    segmenter.initialize()
    loader = segmenter.parser.get_parsed_content("train::handlers")[0]
    loader(None)
    given, taken = torch.load(weights), segmenter.parser.get_parsed_content("network").state_dict()
    for name in ("decoder1.conv_block.conv1.conv.weight", "comparisons.0.0.weight", "swinViT.patch_embed.proj.weight"):
        assert torch.equal(given[name], taken[name].cpu())

    further = made("pretrain", "train", tmp_path / "nowhere", tmp_path, resume=True)
    further.initialize()
    asked = [further.parser.get_parsed_content(name) for name in ("painted", "objective", "loss_weights", "dense")]
    assert asked == [1.0, "painted", {}, True]  # not said again

    evaluation = made(
        "pretrain", "evaluate", tiny_cohort, tmp_path / "measured", checkpoint=str(weights), section="validation"
    )
    evaluation.initialize()
    evaluation.run()
    told = json.loads((tmp_path / "measured" / "cases.json").read_text())
    assert "tissue" not in told["metrics"]  # nothing is asked of real heads but the zero-shot score
    assert told["metrics"]["n_healthy"] > 0
    assert 0 <= told["metrics"]["zero_shot_auc"] <= 1

    inference = made("pretrain", "inference", tiny_cohort, tmp_path / "scores", checkpoint=str(weights))
    inference.initialize()
    inference.run()
    assert (tmp_path / "scores" / "embeddings.npz").is_file()


def test_the_painted_objective_without_painted_brains_is_refused_in_a_sentence(tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    bundle = made("pretrain", "train", tiny_cohort, tmp_path, objective="painted")
    bundle.initialize()
    with pytest.raises(RuntimeError) as caught:
        bundle.run()
    assert "give --painted a share above 0" in str(root_cause(caught.value))


def test_real_heads_are_mixed_in_by_a_share(tissues, tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    options = {"painted": 0.5, "anatomies": str(tissues), "loss_weights": {"tissue": 1, "lesion": 1}}
    bundle = made("pretrain", "train", tiny_cohort, tmp_path, **options, max_epochs=1, num_samples=1)
    bundle.initialize()
    bundle.run()
    learned = bundle.parser.get_parsed_content("train::trainer").state.metrics
    assert {"train_symmetry", "train_inpainting"} <= {f"train_{n.removeprefix('train_')}" for n in learned}
    assert (tmp_path / "models" / "model.pt").is_file()
