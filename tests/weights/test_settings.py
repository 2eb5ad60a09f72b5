import json
import logging
import re

import pytest
import torch
from safetensors.torch import save_file

from custom.networks.classifier import SASwinClassifier
from custom.networks.segmenter import SASwinUNETR
from custom.training.checkpoints import starting_weights
from custom.weights.settings import Weights, as_metadata, carried, carrying, same, settings_in
from custom.weights.transfer import WeightsError

SETTINGS = {
    "modality": "MR", "in_channels": 1, "spacing": 3.0, "spatial_size": [64, 64, 64], "feature_size": 12,
    "window_size": 4, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "symmetry": "saca", "num_classes": 3,
    "learning_rate": 2e-3, "fold": None,
}  # fmt: skip


@pytest.fixture
def model(tmp_path):
    """Weights of one tensor that carry settings."""
    torch.save(carrying({"weight": torch.ones(2)}, seen=[], settings=SETTINGS), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_weights_carry_settings_in_every_format_and_stay_a_flat_state_dict(model, tmp_path):
    flat = torch.load(model, weights_only=True)
    assert list(flat) == ["weight"]
    torch.nn.ParameterDict({"weight": torch.zeros(2)}).load_state_dict(flat, strict=True)
    torch.save({"network": flat, "settings": SETTINGS}, tmp_path / "last.ckpt")
    save_file(dict(flat), tmp_path / "model.safetensors", metadata=as_metadata(seen=[], settings=SETTINGS))
    for name in ("model.pt", "last.ckpt", "model.safetensors"):
        assert settings_in(tmp_path / name) == {"asymmetry_map": False} | SETTINGS  # from before there was one
    assert carried(model, "seen") == []
    assert carried(model, "other") is None


def test_a_run_takes_the_settings_of_its_weights_and_without_weights_the_defaults(model, tmp_path):
    weights = Weights(model)
    assert (weights.get("spacing", 1.0), weights.get("modality", "CT"), weights.get("later_knob", 7)) == (3.0, "MR", 7)
    assert Weights().get("spacing", 1.0) == 1.0
    assert Weights(tmp_path / "none.pt").get("spacing", 1.0) == 1.0
    with pytest.raises(WeightsError, match=r"no checkpoint at .*none.pt"):
        Weights(tmp_path / "none.pt").check(SETTINGS)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("modality", "CT", "modality MR, here CT"),
        ("spacing", 1.0, "spacing 3.0, here 1.0"),
        ("spatial_size", [96, 64, 64], r"spatial_size \[64, 64, 64\], here \[96, 64, 64\]"),
        ("in_channels", 2, "in_channels 1, here 2"),
        ("feature_size", 48, "feature_size 12, here 48"),
        ("num_heads", [3, 6, 12, 24], "num_heads .*, here .*"),
        ("num_classes", 2, "num_classes 3, here 2"),
    ],
)
def test_what_contradicts_the_weights_is_refused_with_both_values(model, caplog, name, value, words):
    weights, settings = Weights(model), SETTINGS | {name: value}
    with pytest.raises(WeightsError, match=f"{words}. Leave out --{name} .* --override_contract True"):
        weights.check(settings)
    with caplog.at_level(logging.WARNING):
        weights.check(settings, override=True)
    assert re.search(words, caplog.text)


@pytest.mark.parametrize(
    ("own", "other", "differ"),
    [
        (["well", "ill"], ["ill", "well"], True),
        (["well", "ill"], ["Well", "ill", "worse"], False),
        (["well", "lesion"], ["lesion", "well"], True),
        (["well", "ill"], None, False),
        (None, ["ill", "well"], False),
        (["class 0", "class 1"], ["ill", "well"], False),
        (["background", "tumour"], ["background", "infarct"], True),
        (["background", "tumour"], ["background", "lesion"], False),
        (["background", "class 1"], ["background", "infarct"], False),
    ],
)
def test_a_list_whose_classes_have_other_names_is_refused_with_those_of_both(tmp_path, caplog, own, other, differ):
    settings = SETTINGS | ({"class_names": own} if own else {})
    torch.save(carrying({"weight": torch.ones(2)}, settings=settings), tmp_path / "model.pt")
    labels = {"labels": {str(number): name for number, name in enumerate(other)}} if other else {}
    (tmp_path / "list.json").write_text(json.dumps(labels | {"testing": []}))
    weights = Weights(tmp_path / "model.pt")
    if not differ:
        weights.check_classes(tmp_path / "list.json")
        return
    words = rf"classes 0 {own[0]}, 1 {own[1]}; .*list\.json has 0 {other[0]}, 1 {other[1]}"
    with pytest.raises(WeightsError, match=words):
        weights.check_classes(tmp_path / "list.json")
    weights.check_classes(tmp_path / "list.json", override=True)
    assert re.search(words, caplog.text)


def test_what_says_how_a_run_is_done_contradicts_nothing(model):
    Weights(model).check(SETTINGS | {"learning_rate": 1.0, "fold": 2, "roi_size": [64, 64, 64]})


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [(3, 3.0, True), (1.0, [1, 1, 1], True), ((2, 2), [2, 2], True), (1.0, [1, 1, 2], False), ("MR", "CT", False)],
)
def test_a_number_stands_for_three_equal_ones(one, other, equal):
    assert same(one, other) == same(other, one) == equal


def test_weights_that_do_not_say_tell_their_sizes_and_need_the_rest_in_so_many_words(tmp_path):
    network = SASwinClassifier(num_classes=3, feature_size=12, window_size=4)
    torch.save(network.state_dict(), tmp_path / "old.pt")
    weights = Weights(tmp_path / "old.pt")
    assert (weights.get("feature_size", 48), weights.get("window_size", 7), weights.get("num_classes", 2)) == (12, 4, 3)
    with pytest.raises(WeightsError, match=r"old.pt does not say .*: no modality; give --modality --spacing"):
        weights.get("modality", "MR")
    with pytest.raises(WeightsError, match="num_classes 3, here 2"):
        weights.check({"modality": "CT", "num_classes": 2})


@pytest.mark.parametrize("readout", ["places", "paper"])
def test_settings_from_before_the_readout_have_that_of_the_tensors(tmp_path, readout):
    network = SASwinUNETR(out_channels=2, feature_size=12, window_size=4, depths=[1] * 4, readout=readout)
    torch.save(carrying(network.state_dict(), settings=SETTINGS), tmp_path / "model.pt")
    assert Weights(tmp_path / "model.pt").get("readout", "neither") == readout
    assert settings_in(tmp_path / "model.pt") == SETTINGS | {"readout": readout, "asymmetry_map": False}


def test_a_training_is_bound_by_the_encoder_of_pretrained_weights_and_by_all_of_its_own_state(model, tmp_path):
    weights = starting_weights(tmp_path, pretrained=model)
    assert (weights.path, weights.resume_from) == (str(model), "")
    assert weights.get("spacing", 1.0) == 3.0
    weights.check(SETTINGS | {"num_classes": 2})
    with pytest.raises(WeightsError, match=r"spacing 3.0, here 1.0"):
        weights.check(SETTINGS | {"spacing": 1.0})
    torch.save({"network": {"weight": torch.ones(2)}, "settings": SETTINGS}, tmp_path / "last.ckpt")
    resumed = starting_weights(tmp_path, resume="auto", pretrained=model)
    assert resumed.path == resumed.resume_from == str(tmp_path / "last.ckpt")
    with pytest.raises(WeightsError, match="num_classes 3, here 2"):
        resumed.check(SETTINGS | {"num_classes": 2})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("objective", "paper", "objective painted, here paper"), ("painted", 0.5, "painted 1.0, here 0.5"),
     ("loss_weights", {"lesion": 2.0}, r"loss_weights \{\}, here \{'lesion': 2.0\}")],
)  # fmt: skip
def test_a_training_goes_on_with_its_own_objective_and_hands_on_none(tmp_path, name, value, words):
    settings = SETTINGS | {"objective": "painted", "painted": 1.0, "loss_weights": {}}
    torch.save({"network": {"weight": torch.ones(2)}, "settings": settings}, tmp_path / "last.ckpt")
    resumed = starting_weights(tmp_path, resume=True)
    resumed.check(settings)
    with pytest.raises(WeightsError, match=f"{words}. Leave out --{name} "):
        resumed.check(settings | {name: value})
    starting_weights(tmp_path / "anew", pretrained=tmp_path / "last.ckpt").check(settings | {name: value})


def test_published_weights_bind_nothing(tmp_path):
    torch.save({"swinViT.weight": torch.ones(2)}, tmp_path / "published.pt")
    weights = starting_weights(tmp_path, pretrained=tmp_path / "published.pt")
    assert weights.get("spacing", 1.0) == 1.0
    weights.check(SETTINGS)


def test_weights_of_one_training_go_together_and_the_first_speaks_for_all(model, tmp_path):
    torch.save(carrying({"weight": torch.zeros(2)}, settings=SETTINGS | {"learning_rate": 1.0}), tmp_path / "fold1.pt")
    both = Weights([str(model), str(tmp_path / "fold1.pt")])
    both.check(SETTINGS)
    assert (both.path, len(both.paths), both.get("spacing", 1.0)) == (str(model), 2, 3.0)
    assert both.digest() == [Weights(path).digest() for path in both.paths]
    assert Weights(model).digest() != both.digest()[1]
    (tmp_path / "conformal.json").touch()
    assert both.beside("conformal.json") == str(tmp_path / "conformal.json")
    assert Weights("").beside("conformal.json") is None
    torch.save(carrying({"weight": torch.zeros(2)}, settings=SETTINGS | {"spacing": 1.0}), tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"are not of one training, and cannot go together: spacing 3\.0 and 1\.0"):
        Weights([model, tmp_path / "other.pt"]).check(SETTINGS)
    with pytest.raises(WeightsError, match=r"no checkpoint at .*none\.pt"):
        Weights([model, tmp_path / "none.pt"]).check(SETTINGS)
    with pytest.raises(WeightsError, match="weights of pretraining are used one at a time, got 2"):
        Weights([model, model], several=False).check(SETTINGS)
    Weights(model, several=False).check(SETTINGS)
