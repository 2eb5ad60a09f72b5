import pytest
import torch
from monai.networks.nets import SwinUNETR

from custom.losses import PretextLoss
from custom.networks import SASwinClassifier, SASwinPretrainer, SASwinUNETR
from custom.networks.encoding import halves
from custom.symmetry import symmetric_pair
from custom.weights.pretrained import SHIPPED, from_pretrained, pretrained_file
from custom.weights.settings import sizes
from custom.weights.transfer import DECODER, DENSE, PRETRAINED_PARTS, WeightsError, transfer

TINY = {"feature_size": 12, "window_size": 4, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}


@pytest.fixture(scope="module")
def pair():
    return symmetric_pair(torch.randn(2, 1, 32, 64, 32, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(3)
    network = SASwinPretrainer(embedding_size=16, dense=True, **TINY)
    for comparison in network.comparisons:  # as after a training: they are zero at the start
        torch.nn.init.normal_(comparison[-1].weight, std=0.1)
    return network


def test_a_dense_pretrainer_says_something_of_each_place(dense, pair):
    said = dense.train()(pair)
    assert said["tissue"].shape == (2, 5, 32, 64, 32)
    assert said["lesion"].shape == (2, 1, 32, 64, 32)
    assert said["places"].shape == (2, 2, 32, 8, 16, 8)
    assert "tissue" not in SASwinPretrainer(embedding_size=16, **TINY).train()(pair)
    assert dense.eval()(pair).shape == (2, 17)


def test_every_parameter_but_those_of_the_other_tasks_learns_from_the_painted_objective(dense, pair):
    dense.train().zero_grad()
    target = {
        "tissue": torch.randint(0, 5, (2, 1, 32, 64, 32)),
        "lesion": torch.randint(0, 2, (2, 1, 32, 64, 32)).float(),
        "alike": torch.ones(2, 1, 32, 64, 32, dtype=torch.bool),
        "healthy": torch.tensor([True, False]),
    }
    PretextLoss("painted", {"homologous": 0.5})(dense(pair), target).backward()
    idle = {name.split(".")[0] for name, p in dense.named_parameters() if p.grad is None}
    assert idle == {"decoder", "rotation_head", "contrastive_head"}


def test_the_segmenter_takes_encoder_and_decoder_over_and_computes_the_same_features(dense, pair):
    segmenter = SASwinUNETR(out_channels=2, **TINY).eval()
    report = transfer(segmenter, dense.state_dict(), PRETRAINED_PARTS, optional=DECODER)
    assert report.missing == ()
    untouched = {n.split(".")[0] for n in segmenter.state_dict() if n not in report.matched + report.further}
    assert untouched == {"out"}
    scales = segmenter.encode_scales(pair, range(5))
    with torch.no_grad():
        expected = dense.eval().decode(halves(pair), scales)
        torch.testing.assert_close(segmenter.decode(halves(pair), scales), expected)
    assert "beside them" in str(report)


def test_a_segmenter_of_two_classes_says_lesion_where_the_pretraining_did(dense, pair):
    segmenter = SASwinUNETR(out_channels=2, **TINY).eval()
    transfer(segmenter, dense.state_dict(), PRETRAINED_PARTS, optional=DENSE)
    with torch.no_grad():
        logits = segmenter(pair)
        torch.testing.assert_close(logits[:, 1:], dense.train().pretext(pair)["lesion"])
    assert not logits[:, 0].any()
    three = SASwinUNETR(out_channels=3, **TINY)
    report = transfer(three, dense.state_dict(), PRETRAINED_PARTS, optional=DENSE)
    assert not [name for name in report.further if name.startswith("out.")]


def test_without_a_decoder_in_the_weights_the_share_is_of_what_is_wanted(dense):
    plain = SASwinPretrainer(embedding_size=16, **TINY)
    report = transfer(SASwinUNETR(out_channels=2, **TINY), plain.state_dict(), PRETRAINED_PARTS, optional=DECODER)
    assert report.further == ()
    assert report.share == 1
    decoder_alone = {n: t for n, t in dense.state_dict().items() if n.startswith(DECODER)}
    with pytest.raises(WeightsError, match="0/"):
        transfer(SASwinUNETR(out_channels=2, **TINY), decoder_alone, PRETRAINED_PARTS, optional=DECODER)


def test_the_tensors_tell_whether_a_pretrainer_is_dense(dense):
    assert sizes(dense.state_dict())["dense"] is True
    assert sizes(SASwinPretrainer(embedding_size=16, **TINY).state_dict())["dense"] is False
    assert "dense" not in sizes(SASwinClassifier(num_classes=2, **TINY).state_dict())


def test_one_line_makes_a_network_of_the_weights_sizes(dense, tmp_path):
    from safetensors.torch import save_file

    from custom.weights.settings import as_metadata

    settings = {**TINY, "symmetry": "saca", "in_channels": 1}
    save_file(dense.state_dict(), tmp_path / "model.safetensors", metadata=as_metadata(settings=settings))
    segmenter = from_pretrained(SASwinUNETR, tmp_path, out_channels=3)
    assert torch.equal(segmenter.decoder3.conv_block.conv1.conv.weight, dense.decoder3.conv_block.conv1.conv.weight)
    assert segmenter.out.conv.conv.out_channels == 3
    classifier = from_pretrained(SASwinClassifier, tmp_path / "model.safetensors", num_classes=2)
    assert torch.equal(classifier.symmetry.norm1.weight, dense.symmetry.norm1.weight)
    with pytest.raises(WeightsError, match="must match"):
        from_pretrained(SASwinUNETR, tmp_path, feature_size=24)


def test_weights_from_elsewhere_say_their_sizes_by_their_tensors(tmp_path):
    theirs = SwinUNETR(in_channels=1, out_channels=3, feature_size=24)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "model.pt")
    ours = from_pretrained(SASwinUNETR, tmp_path / "model.pt", out_channels=2)
    assert torch.equal(ours.swinViT.patch_embed.proj.weight, theirs.swinViT.patch_embed.proj.weight)
    assert ours.symmetry is not None


def test_a_name_of_weights_is_a_file_a_folder_the_default_or_refused(tmp_path, monkeypatch):
    assert pretrained_file("") == ""
    assert pretrained_file(tmp_path / "none.pt") == str(tmp_path / "none.pt")  # its loader says that there is none
    with pytest.raises(WeightsError, match=r"holds none of model\.safetensors"):
        pretrained_file(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").touch()
    assert pretrained_file(tmp_path) == str(tmp_path / "models" / "model.pt")
    monkeypatch.setitem(SHIPPED, "default", tmp_path / "away.safetensors")
    with pytest.raises(WeightsError, match="come with the repository"):
        pretrained_file("default")
