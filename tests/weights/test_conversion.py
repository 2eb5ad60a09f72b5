import numpy as np
import pytest
import torch
from monai.networks.nets import SwinUNETR
from safetensors.torch import load_file, save_file

from custom.networks.classifier import SASwinClassifier
from custom.networks.pretrainer import SASwinPretrainer
from custom.networks.segmenter import SASwinUNETR
from custom.weights.conversion import convert, convert_file, input_channels, sizes, table
from custom.weights.settings import carrying
from custom.weights.transfer import WeightsError, load_checkpoint, transfer, weights_digest
from sa_swin.__main__ import main


def brats_style(network):
    """A checkpoint as MONAI's BraTS tutorial and BrainSegFounder write it: wrapped, nested, a numpy score beside it."""
    return {
        "epoch": 3,
        "best_acc": np.float64(0.9),
        "state_dict": {f"module.{name}": tensor for name, tensor in network.state_dict().items()},
    }


def ssl_style(network):
    """A checkpoint of BrainSegFounder's pretraining: the encoder and the heads of an SSLHead, with its optimiser."""
    encoder = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("swinViT.")}
    heads = {"rotation_head.weight": torch.zeros(4, 192), "rotation_head.bias": torch.zeros(4)}
    return {"global_step": 9, "state_dict": {**encoder, **heads, "conv.0.weight": torch.zeros(1)}, "optimizer": {}}


@pytest.fixture
def four_channels(small):
    return SwinUNETR(4, 3, **small)


def of(path, content):
    torch.save(content, path)
    return load_checkpoint(path)


def weights_of(network):
    return {name: t for name, t in network.state_dict().items() if not name.endswith("relative_position_index")}


@pytest.mark.parametrize("style", [brats_style, lambda network: {"model_state_dict": network.state_dict()}])
def test_a_swin_unetr_checkpoint_becomes_a_segmenter(tmp_path, small, style):
    source = SwinUNETR(1, 2, **small)
    converted, rows = convert(of(tmp_path / "model.pt", style(source)), "segment")
    assert set(converted) == set(weights_of(source))
    assert all(torch.equal(converted[name], tensor) for name, tensor in weights_of(source).items())
    assert all(row.name.startswith("symmetry.") for row in rows if row.status == "not set")
    assert not [row for row in rows if row.status in ("left", "reshaped")]


def test_an_encoder_is_all_that_is_taken_for_an_encoder(tmp_path, small, four_channels):
    converted, rows = convert(of(tmp_path / "model.pt", ssl_style(four_channels)), "encoder", in_channels=4)
    assert all(name.startswith("swinViT.") for name in converted)
    assert {row.name for row in rows if row.status == "left"} == {
        "rotation_head.weight", "rotation_head.bias", "conv.0.weight"
    }  # fmt: skip
    network = SASwinUNETR(in_channels=4, **small)
    assert transfer(network, converted, parts=("swinViT.",), minimum=1.0).share == 1


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.model."])
def test_wrappers_of_the_network_do_not_matter(tmp_path, small, prefix):
    source = SwinUNETR(1, 2, **small)
    state = {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()}
    converted, _ = convert(of(tmp_path / "model.pt", {"state_dict": state}), "segment")
    assert set(converted) == set(weights_of(source))


def test_four_input_channels_become_one_that_answers_as_four_equal_ones(tmp_path, small, four_channels):
    converted, rows = convert(of(tmp_path / "model.pt", brats_style(four_channels)), "segment")
    reshaped = {row.name: row for row in rows if row.status == "reshaped"}
    assert set(reshaped) == {
        "swinViT.patch_embed.proj.weight", "encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight"
    }  # fmt: skip
    assert reshaped["swinViT.patch_embed.proj.weight"].source == (12, 4, 2, 2, 2)
    assert reshaped["swinViT.patch_embed.proj.weight"].target == (12, 1, 2, 2, 2)
    one = SwinUNETR(1, 3, **small).eval()
    one.load_state_dict(converted, strict=False)
    image = torch.randn(1, 1, 64, 32, 32)
    with torch.no_grad():
        expected = four_channels.eval()(image.expand(1, 4, -1, -1, -1))
        torch.testing.assert_close(one(image), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (4, 2)])
def test_the_sum_over_the_input_channels_is_kept(before, after):
    weight = torch.randn(5, before, 2, 2, 2)
    torch.testing.assert_close(input_channels(weight, after).sum(dim=1), weight.sum(dim=1))
    assert input_channels(weight, after).shape == (5, after, 2, 2, 2)


def test_input_channels_by_hand():
    assert input_channels(torch.tensor([[1.0, 2.0, 3.0]])[..., None], 2).flatten().tolist() == [3, 3]


def test_sizes_are_read_from_the_tensors():
    network = SASwinClassifier(3, in_channels=2, feature_size=24, window_size=5, depths=(1, 2, 1, 1))
    assert sizes(network.state_dict()) == {
        "symmetry": "saca", "feature_size": 24, "in_channels": 2, "asymmetry_map": False, "depths": [1, 2, 1, 1],
        "num_heads": [3, 6, 12, 24],
        "window_size": 5, "num_classes": 3, "readout": "places",
    }  # fmt: skip
    assert sizes(SASwinClassifier(feature_size=12, readout="paper").state_dict())["readout"] == "paper"
    found = sizes(SASwinPretrainer(feature_size=12, embedding_size=64).state_dict())
    assert (found["embedding_size"], found["readout"]) == (64, "places")
    assert sizes(SASwinPretrainer(feature_size=12, readout="paper").state_dict())["readout"] == "paper"
    assert sizes(SASwinUNETR(3, feature_size=12, symmetry="none").state_dict())["symmetry"] == "none"


def test_the_table_says_what_became_of_every_tensor(tmp_path, four_channels):
    _, rows = convert(of(tmp_path / "model.pt", brats_style(four_channels)), "classify")
    text = table(rows)
    assert "matched     29 tensors  swinViT.layers1" in text
    assert (
        "reshaped  swinViT.patch_embed.proj.weight  [12, 4, 2, 2, 2] -> [12, 1, 2, 2, 2]  sum over the input channels"
        in text
    )
    assert "left      out.conv.conv.bias  [3]  no such tensor in the network" in text
    counts = dict(reversed(part.split(" ", 1)) for part in text.splitlines()[-1].split(", "))
    assert int(counts["matched"]) + int(counts["reshaped"]) + int(counts["left"]) == len(weights_of(four_channels))


def test_nothing_random_is_written(tmp_path, small):
    torch.save(brats_style(SwinUNETR(1, 2, **small)), tmp_path / "source.pt")
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        convert_file(tmp_path / "source.pt", "segment", file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_safetensors_go_both_ways(tmp_path, small):
    source = SwinUNETR(1, 2, **small)
    save_file(source.state_dict(), tmp_path / "source.safetensors")
    convert_file(tmp_path / "source.safetensors", "encoder", tmp_path / "a.pt")
    convert_file(tmp_path / "a.pt", "encoder", tmp_path / "b.safetensors")
    assert set(load_file(tmp_path / "b.safetensors")) == {n for n in weights_of(source) if n.startswith("swinViT.")}
    assert weights_digest(tmp_path / "a.pt") == weights_digest(tmp_path / "b.safetensors")


def test_the_digest_is_that_of_the_weights_alone(tmp_path, small):
    state = SASwinClassifier(**small).state_dict()
    files = {
        "flat": state,
        "nested": {"network": state, "best": 1.0},
        "reversed": dict(reversed(state.items())),
        "without index": {name: t for name, t in state.items() if not name.endswith("relative_position_index")},
    }
    digests = set()
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pt")
        digests.add(weights_digest(tmp_path / f"{name}.pt"))
    assert len(digests) == 1
    state["head.0.0.bias"][0] += 1
    torch.save(state, tmp_path / "changed.pt")
    assert weights_digest(tmp_path / "changed.pt") not in digests


@pytest.mark.parametrize(
    ("content", "to", "output", "sentence"),
    [
        ({"fc.weight": torch.zeros(2)}, "encoder", "out.pt", "no Swin encoder among the tensors"),
        (
            {"fc.weight": torch.zeros(2)},
            "encoders",
            "out.pt",
            "--to should be one of encoder, pretrain, .* got encoders",
        ),
        (
            {"fc.weight": torch.zeros(2)},
            "encoder",
            "out.bin",
            r"--output should end in .pt or .safetensors, got .*out.bin",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path, content, to, output, sentence):
    torch.save(content, tmp_path / "source.pt")
    with pytest.raises(WeightsError, match=sentence):
        convert_file(tmp_path / "source.pt", to, tmp_path / output)
    assert [path.name for path in tmp_path.iterdir()] == ["source.pt"]


def test_a_part_of_an_encoder_is_refused(four_channels):
    tensors = {name: tensor for name, tensor in four_channels.state_dict().items() if ".mlp." not in name}
    with pytest.raises(WeightsError, match=r"only 86 of 118 tensors of a Swin encoder were found"):
        convert(tensors, "encoder")


def run(*arguments):
    main(["weights", "convert", *map(str, arguments)])


def test_the_command_prints_the_table_and_one_sentence_on_an_error(tmp_path, small, capsys):
    torch.save(SASwinPretrainer(**small).state_dict(), tmp_path / "source.pt")
    output = tmp_path / "out.safetensors"
    run(tmp_path / "source.pt", "--to", "classify", "--output", output)
    assert "tensors  symmetry" in capsys.readouterr().out
    assert transfer(SASwinClassifier(**small), load_checkpoint(output)).share == 1
    with pytest.raises(SystemExit, match=f"sa-swin weights: no checkpoint at {tmp_path / 'none.pt'}"):
        run(tmp_path / "none.pt", "--to", "classify", "--output", output)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"symmetry": "channel"}, "sees the mirror image as channels"),
        ({"asymmetry_map": True}, "sees the asymmetry map"),
    ],
)
def test_weights_whose_channels_mean_something_else_are_not_converted(tmp_path, small, settings, sentence):
    state = SASwinClassifier(**small, **settings).state_dict()
    torch.save(carrying(state, settings=settings), tmp_path / "source.pt")
    with pytest.raises(WeightsError, match=sentence):
        convert_file(tmp_path / "source.pt", "segment", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
