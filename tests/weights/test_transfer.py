import logging
import pickle

import pytest
import torch
from ignite.engine import Engine
from monai.networks.nets import SwinUNETR
from safetensors.torch import save_file
from torch import nn

from custom.networks.classifier import SASwinClassifier
from custom.networks.pretrainer import SASwinPretrainer
from custom.networks.segmenter import SASwinUNETR
from custom.weights.loader import PretrainedLoader
from custom.weights.transfer import Transfer, WeightsError, load_checkpoint, renamed, transfer


def pretrained(network):
    """State of the parts that pretraining hands on, without index buffers."""
    state = network.state_dict()
    return {k: v for k, v in state.items() if k.startswith(("swinViT.", "symmetry.")) and "position_index" not in k}


def assert_same(network, expected):
    """The network holds exactly these values."""
    state = network.state_dict()
    assert expected
    assert not [name for name, value in expected.items() if not torch.equal(state[name], value)]


@pytest.fixture
def pretrainer(small):
    return SASwinPretrainer(embedding_size=8, **small)


def saved(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("target", [SASwinClassifier, SASwinUNETR])
def test_pretraining_hands_on_its_whole_encoder_and_cross_attention(tmp_path, small, pretrainer, target):
    network = target(**small)
    heads = {k: v.clone() for k, v in network.state_dict().items() if not k.startswith(("swinViT.", "symmetry."))}
    report = transfer(network, load_checkpoint(saved(tmp_path / "model.pt", pretrainer.state_dict())))
    assert report.share == 1
    assert set(report.matched) == set(pretrained(network))
    assert report.missing == ()
    assert_same(network, pretrained(pretrainer))
    assert_same(network, heads)
    assert f"{len(report.matched)}/{len(report.matched)} tensors matched" in str(report)


def test_the_last_checkpoint_of_a_training_serves_too(tmp_path, small, pretrainer):
    optimizer = torch.optim.AdamW(pretrainer.parameters())
    content = {"network": pretrainer.state_dict(), "optimizer": optimizer.state_dict(), "best": 0.5}
    network = SASwinClassifier(**small)
    assert transfer(network, load_checkpoint(saved(tmp_path / "last.ckpt", content))).share == 1
    assert_same(network, pretrained(pretrainer))


def test_safetensors_load(tmp_path, small, pretrainer):
    path = tmp_path / "model.safetensors"
    save_file(pretrainer.state_dict(), path)
    network = SASwinClassifier(**small)
    assert transfer(network, load_checkpoint(path)).share == 1
    assert_same(network, pretrained(pretrainer))


def test_monais_swin_unetr_loads_into_the_encoder_and_the_decoder(tmp_path, small):
    source = SwinUNETR(1, 2, **small)
    network = SASwinUNETR(2, **small)
    tensors = load_checkpoint(saved(tmp_path / "swin_unetr.pt", source.state_dict()))
    report = transfer(network, tensors, parts=("",), minimum=0.5)
    assert all(name.startswith(("symmetry.", "comparisons.")) for name in report.missing)
    assert report.unused == ()
    assert_same(network, {k: v for k, v in source.state_dict().items() if "position_index" not in k})


def encoder_of(source):
    return {k.removeprefix("swinViT."): v for k, v in source.state_dict().items() if k.startswith("swinViT.")}


def as_model_swinvit(source):
    """Names as in MONAI's `model_swinvit.pt`: the encoder by itself, `fc1` for `linear1`, nested and wrapped."""
    names = {f"module.{k}".replace("mlp.linear", "mlp.fc"): v for k, v in encoder_of(source).items()}
    assert any(".mlp.fc1.weight" in name for name in names)
    return {"epoch": 3, "state_dict": {**names, "module.rotation_head.weight": torch.zeros(4, 192)}}


def as_ssl_pretrained_weights(source):
    """Names as in MONAI's `ssl_pretrained_weights.pth`, which its `filter_swinunetr` undoes."""
    names = {}
    for name, value in encoder_of(source).items():
        stage, _, rest = name.partition(".")
        names[f"encoder.{name}" if stage == "patch_embed" else f"encoder.{stage}.0.{rest}"] = value
    assert "encoder.layers1.0.0.blocks.0.norm1.weight" in names
    return {"model": {**names, "encoder.mask_token": torch.zeros(1), "encoder.norm.weight": torch.zeros(192)}}


def as_reference_repository(source):
    """Names as the reference repository's pretraining writes them: wrapped, SACA as a BERT layer."""
    bert = {
        "attention.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "cross_attention.to_q": "crossattention.self.query",
        "cross_attention.to_k": "crossattention.self.key",
        "cross_attention.to_v": "crossattention.self.value",
        "cross_attention.out_proj": "crossattention.output.dense",
        "norm2": "crossattention.output.LayerNorm",
        "mlp.linear1": "intermediate.dense",
        "mlp.linear2": "output.dense",
        "norm3": "output.LayerNorm",
    }
    names = {}
    for name, value in source.state_dict().items():
        part, _, rest = name.partition(".")
        layer, _, kind = rest.rpartition(".")
        if part == "swinViT":
            names[f"module.{name}"] = value
        elif part == "symmetry" and layer in bert:
            names[f"module.symmetryAwareTX.{bert[layer]}.{kind}"] = value
        elif part == "symmetry":
            for word, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                names[f"module.symmetryAwareTX.attention.self.{word}.{kind}"] = third
    return {"epoch": 9, "state_dict": {**names, "module.aaw_head.weight": torch.zeros(512, 192)}}


@pytest.mark.parametrize("style", [as_model_swinvit, as_ssl_pretrained_weights])
def test_published_encoders_of_monai_load(tmp_path, small, pretrainer, style):
    network = SASwinClassifier(symmetry="none", **small)
    report = transfer(network, load_checkpoint(saved(tmp_path / "published.pt", style(pretrainer))))
    assert report.share == 1
    assert_same(network, {k: v for k, v in pretrained(pretrainer).items() if k.startswith("swinViT.")})


@pytest.mark.parametrize("style", [as_model_swinvit, as_ssl_pretrained_weights])
def test_a_published_encoder_is_enough_for_a_network_with_cross_attention(tmp_path, small, pretrainer, style):
    network = SASwinUNETR(**small)
    before = {k: v.clone() for k, v in network.state_dict().items() if k.startswith("symmetry.")}
    report = transfer(network, load_checkpoint(saved(tmp_path / "published.pt", style(pretrainer))))
    assert 0.8 <= report.share < 1
    assert set(report.missing) == set(before)
    assert_same(network, before)


def test_a_checkpoint_of_the_reference_repository_loads_whole(tmp_path, small, pretrainer):
    for parameter in pretrainer.symmetry.parameters():
        nn.init.normal_(parameter)
    network = SASwinClassifier(**small)
    content = as_reference_repository(pretrainer)
    report = transfer(network, load_checkpoint(saved(tmp_path / "reference.pt", content)))
    assert report.share == 1
    assert report.unused == ("aaw_head.weight",)
    assert_same(network, pretrained(pretrainer))


def test_query_key_and_value_become_one_in_this_order():
    parts = {
        f"symmetryAwareTX.attention.self.{word}.bias": torch.full((2,), i)
        for i, word in enumerate(("query", "key", "value"))
    }
    assert renamed(parts)["symmetry.attention.qkv.bias"].tolist() == [0, 0, 1, 1, 2, 2]


def test_our_own_names_stay_as_they_are(pretrainer):
    assert list(renamed(pretrainer.state_dict())) == list(pretrainer.state_dict())


def test_too_small_a_share_fails_and_leaves_the_network_as_it_was(small):
    network = SASwinClassifier(**small)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    wrong = SASwinPretrainer(feature_size=24, window_size=4)
    with pytest.raises(WeightsError, match=r"\d+/\d+ tensors matched; not set: swinViT.* at least 80% must match"):
        transfer(network, wrong.state_dict())
    assert_same(network, before)


CONTRASTS = [((1, False), (3, False)), ((1, False), (1, True)), ((1, True), (2, True)), ((1, True), (1, False))]


@pytest.mark.parametrize(("before", "now"), CONTRASTS)
def test_weights_answer_alike_with_further_contrasts_and_a_map_that_was_not_there(small, before, now):
    def made(contrasts, asymmetry_map):
        return SASwinUNETR(out_channels=2, in_channels=contrasts, asymmetry_map=asymmetry_map, **small).eval()

    old, new = made(*before), made(*now)
    torch.nn.init.normal_(old.comparisons[0][-1].weight)  # zero in a new one
    report = transfer(new, old.state_dict(), parts=("",), saw_map=before[1])
    assert report.missing == ()
    image, further, seen_map = torch.randn(3, 2, 1, 32, 64, 32)  # of both halves
    halves = [torch.cat([image, *[further] * (now[0] - 1), *[seen_map] * now[1]], 1)[half] for half in (0, 1)]
    given = [torch.cat([image, *[seen_map * now[1]] * before[1]], 1)[half] for half in (0, 1)]
    with torch.no_grad():
        torch.testing.assert_close(new(torch.cat(halves)[None]), old(torch.cat(given)[None]))


def test_a_map_is_not_taken_for_a_contrast(small):
    old = SASwinUNETR(out_channels=2, in_channels=1, asymmetry_map=True, **small)
    new = SASwinUNETR(out_channels=2, in_channels=2, **small)
    assert transfer(new, old.state_dict(), parts=("",), saw_map=True).missing == ()
    weight = new.swinViT.patch_embed.proj.weight
    torch.testing.assert_close(weight[:, 0], old.swinViT.patch_embed.proj.weight[:, 0])
    assert not weight[:, 1].any()


def test_a_tensor_of_another_shape_is_named_and_left_as_it_was(small):
    network = SASwinClassifier(in_channels=3, **small)
    before = network.swinViT.patch_embed.proj.weight.clone()
    report = transfer(network, SASwinPretrainer(in_channels=2, embedding_size=8, **small).state_dict())
    assert report.missing == ("swinViT.patch_embed.proj.weight",)
    assert torch.equal(network.swinViT.patch_embed.proj.weight, before)


def test_the_position_index_that_other_checkpoints_hold_is_left_alone(small, pretrainer):
    index = {"swinViT.layers1.0.blocks.0.attn.relative_position_index": torch.zeros(3, 3, dtype=torch.long)}
    report = transfer(SASwinClassifier(**small), pretrainer.state_dict() | index)
    assert report.share == 1
    assert "relative_position_index" not in str((report.matched, report.missing, report.unused))


def test_a_wrapped_network_is_filled_inside(small, pretrainer):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    network = SASwinClassifier(**small)
    assert transfer(Wrapper(network), pretrainer.state_dict()).share == 1
    assert_same(network, pretrained(pretrainer))


def test_the_share_is_that_of_the_wanted_tensors():
    report = Transfer(matched=("a", "b", "c"), missing=("d",), unused=tuple("efghijklmn"))
    assert report.share == 0.75
    assert str(report) == "3/4 tensors matched; not set: d; not used: e, f, g, h, i, j, k, l, and 2 more"


def test_no_file_is_said_so(tmp_path):
    with pytest.raises(WeightsError, match=r"no checkpoint at .*none.pt"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half a zip"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name} is not a checkpoint of tensors"):
        load_checkpoint(path)


class Payload:
    """What a pickle could run."""

    def __reduce__(self):
        return pytest.fail, ("code of the checkpoint was run",)


def test_code_beside_the_tensors_is_never_run(tmp_path, caplog):
    path = saved(tmp_path / "model.pt", {"w": torch.ones(1), "x": Payload()})
    assert load_checkpoint(path)["w"] == 1
    assert "not loaded beside the tensors: " in caplog.text


def test_a_bare_pickle_is_refused(tmp_path):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(WeightsError, match="is not a checkpoint of tensors"):
        load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"state_dict": {"epoch": 3}}])
def test_a_file_without_tensors_is_refused(tmp_path, content):
    with pytest.raises(WeightsError, match=r"model.pt holds no tensors"):
        load_checkpoint(saved(tmp_path / "model.pt", content))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    content = {"a": torch.ones(2), "b": torch.tensor([1.0, value])}
    with pytest.raises(WeightsError, match=r"model.pt holds values that are not finite, 1 tensors, first b"):
        load_checkpoint(saved(tmp_path / "model.pt", content))


def test_weights_load_before_the_run_and_the_log_says_what_matched(tmp_path, small, pretrainer, caplog):
    path = saved(tmp_path / "model.pt", pretrainer.state_dict())
    network = SASwinClassifier(**small)
    engine = Engine(lambda engine, batch: None)
    PretrainedLoader(path, network).attach(engine)
    with caplog.at_level(logging.INFO):
        engine.run([0])
    assert_same(network, pretrained(pretrainer))
    assert "tensors matched" in caplog.text


def test_a_checkpoint_that_must_fit_the_whole_network_and_does_not_stops_the_run(tmp_path, small, pretrainer):
    path = saved(tmp_path / "model.pt", pretrainer.state_dict())
    engine = Engine(lambda engine, batch: None)
    PretrainedLoader(path, SASwinClassifier(**small), parts=("",), minimum=1.0).attach(engine)
    with pytest.raises(WeightsError, match=r"not set: temperature, class_bias, head.0.0.weight.* at least 100% must"):
        engine.run([0])


def test_a_network_is_not_evaluated_without_the_cross_attention_it_was_trained_with(tmp_path, small):
    path = saved(tmp_path / "model.pt", SASwinUNETR(**small).state_dict())
    engine = Engine(lambda engine, batch: None)
    PretrainedLoader(path, SASwinUNETR(symmetry="none", **small), parts=("",), minimum=1.0).attach(engine)
    with pytest.raises(WeightsError, match=r"not used: symmetry."):
        engine.run([0])
