import hashlib
import re

import pytest
import torch

from custom.networks import SASwinPretrainer, SASwinUNETR
from custom.weights import from_pretrained
from custom.weights.pretrained import SHIPPED
from custom.weights.provenance import records_of
from custom.weights.settings import carrying, settings_in
from custom.weights.transfer import load_checkpoint, transfer
from sa_swin.weights import pack

TINY = {"feature_size": 12, "window_size": 4, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}


def test_what_is_packed_is_what_fine_tuning_takes_over_in_half_the_size(tmp_path, capsys):
    network = SASwinPretrainer(embedding_size=16, dense=True, **TINY)
    settings = {**TINY, "symmetry": "saca", "in_channels": 1, "spacing": 3.0, "readout": "places"}
    seen = [{"stage": "pretrain", "section": "training", "label": "none", "salt": "00", "subjects": [], "images": []}]
    torch.save(carrying(network.state_dict(), settings=settings, seen=seen), tmp_path / "model.pt")
    packed = tmp_path / "packed.safetensors"
    pack(str(tmp_path / "model.pt"), str(packed))
    told = capsys.readouterr().out
    assert hashlib.sha256(packed.read_bytes()).hexdigest() in told
    assert packed.stat().st_size < 0.5 * (tmp_path / "model.pt").stat().st_size
    assert settings_in(packed) == {"asymmetry_map": False} | settings  # what old ones do not say
    assert records_of(packed) == records_of(tmp_path / "model.pt")
    segmenter = from_pretrained(SASwinUNETR, packed, out_channels=2)
    given, taken = network.state_dict(), segmenter.state_dict()
    shared = [name for name in taken if not name.startswith("out.") and "relative_position_index" not in name]
    assert shared
    for name in shared:
        torch.testing.assert_close(taken[name], given[name], atol=2e-3, rtol=1e-3)
        assert taken[name].dtype == torch.float32


@pytest.mark.parametrize("name", list(SHIPPED))
def test_the_weights_that_come_with_sa_swin_are_those_of_their_card_small_and_of_no_patient(name):
    path = SHIPPED[name]
    card = path.with_suffix(".md").read_text()
    assert re.findall(r"[0-9a-f]{64}", card) == [hashlib.sha256(path.read_bytes()).hexdigest()]
    assert path.stat().st_size <= 10e6
    assert all(record["subjects"] == record["images"] == [] for record in records_of(path))
    segmenter, tensors = from_pretrained(SASwinUNETR, name, out_channels=2), load_checkpoint(path)
    taken = {name for name in segmenter.state_dict() if "relative_position_index" not in name}
    assert taken - tensors.keys() == {"out.conv.conv.weight", "out.conv.conv.bias"}
    state = segmenter.state_dict()
    assert all(torch.equal(state[name], tensors[name].to(state[name].dtype)) for name in taken & tensors.keys())


def test_weights_that_see_the_map_are_a_segmenter_that_has_seen_no_patient():
    tensors = load_checkpoint(SHIPPED["default"])
    segmenter = SASwinUNETR(out_channels=2, asymmetry_map=True, **TINY)
    assert transfer(segmenter, tensors, parts=("",), minimum=1.0).unused == ()
    weight = segmenter.out.conv.conv.weight
    assert torch.equal(weight[1], tensors["dense_head.conv.conv.weight"][0].float())
    assert not weight[0].any()
