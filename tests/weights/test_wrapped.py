"""Weights are found in whatever a training wrapped them, nothing of it is run, and a refusal says what was there."""

import argparse
import collections
import datetime
import enum
import pathlib
import types
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from custom.networks.classifier import SASwinClassifier
from custom.networks.pretrainer import SASwinPretrainer
from custom.weights.loader import PretrainedLoader
from custom.weights.transfer import WeightsError, load_checkpoint, read_checkpoint, transfer
from custom.weights.wrapped import networks_in, unpickled


@pytest.fixture(scope="module")
def pretrainer():
    torch.manual_seed(3)
    return SASwinPretrainer(embedding_size=8, feature_size=12, window_size=4, depths=(1,) * 4, num_heads=(1, 2, 4, 8))


def names_under(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def other(state):
    """Weights of the same shapes that must not be taken."""
    return {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def assert_holds(tensors, state):
    assert set(tensors) == set(state)
    assert all(torch.equal(tensors[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model._orig_mod.", "module._orig_mod.module.", "net.", "model.network.", "student.",
     "teacher.backbone.", "ema_model.module.", "lightning_module.model.net."],
)  # fmt: skip
@pytest.mark.parametrize("place", [(), ("state_dict",), ("checkpoint", "model"), ("a", "b", "ema_state")])
def test_weights_are_found_under_any_prefix_and_place(tmp_path, pretrainer, prefix, place):
    content = names_under(prefix, pretrainer.state_dict())
    for name in reversed(place):
        content = {name: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(5)}}}}
    torch.save(content, tmp_path / "model.pt")
    assert_holds(load_checkpoint(tmp_path / "model.pt"), pretrainer.state_dict())


def test_a_wrapper_in_the_middle_of_a_name_goes(pretrainer):
    state = pretrainer.state_dict()
    compiled = {name.replace("swinViT.", "swinViT._orig_mod.module."): tensor for name, tensor in state.items()}
    assert_holds(networks_in(compiled)[0].tensors, state)


@pytest.mark.parametrize(
    ("taken", "left"),
    [("teacher", "student"), ("state_dict_ema", "state_dict"), ("model_ema", "model"), ("swa", "last")],
)
def test_of_two_networks_the_average_is_taken_and_the_log_says_so(tmp_path, pretrainer, caplog, taken, left):
    state = pretrainer.state_dict()
    apart = {left: other(state), taken: state}
    together = {**names_under(f"{left}.", other(state)), **names_under(f"{taken}.", state)}
    for content in (apart, dict(reversed(apart.items())), together):
        torch.save(content, tmp_path / "model.pt")
        assert_holds(load_checkpoint(tmp_path / "model.pt"), state)
    assert f"several networks: {taken} is taken, not {left}" in caplog.text


def test_a_network_that_is_whole_comes_before_an_average_of_its_encoder(pretrainer):
    state = pretrainer.state_dict()
    part = {name: tensor for name, tensor in other(state).items() if name.startswith("swinViT.layers1")}
    part["swinViT.patch_embed.proj.weight"] = state["swinViT.patch_embed.proj.weight"]
    assert_holds(networks_in({"ema": part, "model": state})[0].tensors, state)


class Color(enum.Enum):
    """An enumeration."""

    RED = 1


class Config(dict):
    """A dictionary with a class of its own, as configurations have."""


class Items(list):
    """A list with a class of its own."""


@dataclass
class Options:
    """Settings as a dataclass."""

    rate: float = 0.1
    tags: list = field(default_factory=lambda: ["a"])


Point = collections.namedtuple("Point", "x y")
BESIDE = {
    "namespace": argparse.Namespace(lr=1, device=torch.device("cpu")),
    "simple": types.SimpleNamespace(a=[1]),
    "dataclass": Options(),
    "dictionary": Config(lr=1),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "list": Items([1, 2]),
    "deque": collections.deque([1]),
    "named": Point(1, 2),
    "path": pathlib.PurePosixPath("/a/b"),
    "time": datetime.datetime(2026, 1, 1),
    "enum": Color.RED,
    "key": {Color.RED: 1},
    "array": np.arange(3),
    "generator": np.random.default_rng(0).bit_generator.state,
    "class": Options,
    "optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1),
}


@pytest.mark.parametrize("name", BESIDE)
def test_anything_may_lie_beside_the_tensors(tmp_path, pretrainer, name):
    content = {"state_dict": pretrainer.state_dict(), "hyper_parameters": {"inner": BESIDE[name]}, "epoch": 3}
    torch.save(content, tmp_path / "model.pt")
    assert_holds(load_checkpoint(tmp_path / "model.pt"), pretrainer.state_dict())
    assert read_checkpoint(tmp_path / "model.pt")["epoch"] == 3


def test_a_network_that_was_pickled_whole_gives_its_weights(tmp_path, pretrainer, caplog):
    torch.save({"model": pretrainer}, tmp_path / "model.pt")
    tensors = load_checkpoint(tmp_path / "model.pt")
    network = SASwinClassifier(feature_size=12, window_size=4, depths=(1,) * 4, num_heads=(1, 2, 4, 8))
    assert transfer(network, tensors).share == 1
    assert torch.equal(network.swinViT.patch_embed.proj.weight, pretrainer.swinViT.patch_embed.proj.weight)
    assert "custom.networks.pretrainer.SASwinPretrainer" in caplog.text


class Call:
    """A pickle that calls a function with arguments."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("function", [exec, eval, getattr, __import__, pathlib.Path.touch, torch.load, pytest.fail])
def test_nothing_is_run_that_a_pickle_names(tmp_path, monkeypatch, pretrainer, function):
    trap = tmp_path / "trap"
    arguments = {
        exec: [f"open({str(trap)!r}, 'w')"],
        eval: [f"open({str(trap)!r}, 'w')"],
        getattr: ["text", "upper"],
        __import__: ["antigravity"],
        pathlib.Path.touch: [trap],
        torch.load: [str(trap)],
    }.get(function, ["run"])
    torch.save({"w": pretrainer.state_dict(), "x": Call(function, *arguments)}, tmp_path / "model.pt")
    assert_holds(load_checkpoint(tmp_path / "model.pt"), pretrainer.state_dict())
    assert not trap.exists()


def test_a_pickle_cannot_change_what_it_names(tmp_path):
    """BUILD sets attributes of the object before it: here, of torch's own function."""
    pickled = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x0c__defaults__K\x01\x85s\x86b."
    before = torch._utils._rebuild_tensor_v2.__defaults__
    torch.save({"x": Options()}, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as old, zipfile.ZipFile(tmp_path / "changed.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name.replace("model/", "changed/"), pickled if name.endswith("data.pkl") else old.read(name))
    with suppress(Exception):
        unpickled(tmp_path / "changed.pt")
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_a_refusal_names_what_was_there_without_escape_codes(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"epoch": 3, "args": argparse.Namespace(lr=1), "history": [1, 2], "optimizer": {"a": {}}}, path)
    with pytest.raises(WeightsError) as error:
        load_checkpoint(path)
    words = "epoch (int), args (argparse.Namespace), history (list of 2), optimizer (dict of 1)"
    assert str(error.value) == f"{path} holds no tensors, but {words}"


@pytest.mark.parametrize("old", [True, False])
def test_what_is_refused_is_refused_in_plain_words(tmp_path, old):
    path = tmp_path / "model.pt"
    if old:
        torch.save({"w": torch.ones(1), "x": Options()}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match="is not a checkpoint of tensors: ") as error:
        load_checkpoint(path)
    assert "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_do_not_fit_are_refused_by_the_name_of_their_file(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"resnet.conv1.weight": torch.ones(3)}, path)
    network = SASwinClassifier(feature_size=12, window_size=4, depths=(1,) * 4, num_heads=(1, 2, 4, 8))
    with pytest.raises(WeightsError, match=r"other.pt: 0/\d+ tensors matched; .* not used: resnet.conv1.weight"):
        PretrainedLoader(path, network)(None)
