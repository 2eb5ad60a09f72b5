import math

import pytest
import torch
from monai.networks.nets import SwinUNETR

from custom.networks.classifier import SASwinClassifier
from custom.networks.encoding import BOTTLENECK
from custom.networks.heads import GlobalBatchNorm, InpaintingDecoder, asymmetry_of_places, mean_of_scales, peak, pool
from custom.networks.pretrainer import SASwinPretrainer
from custom.networks.saca import SymmetryAwareCrossAttention
from custom.networks.segmenter import SASwinUNETR
from custom.support.distributed import GlobalBatchLoss
from custom.symmetry import mirror, symmetric_pair

NETWORKS = [SASwinPretrainer, SASwinClassifier, SASwinUNETR]


class Identity(torch.nn.Module):
    """Cross-attention that says nothing."""

    def forward(self, features, mirrored):
        return features


def by_hand(saca, features, mirrored):
    """SACA, token by token and head by head, from the module's own weights."""
    shape = features.shape
    tokens, context = (f.flatten(2).transpose(1, 2).double() for f in (features, mirrored))
    weights = {name: value.double() for name, value in saca.state_dict().items()}

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt() * weights[f"{name}.weight"]
            + weights[f"{name}.bias"]
        )

    def attention(q, k, v):
        heads = []
        for part in range(saca.cross_attention.num_heads):
            size = q.shape[-1] // saca.cross_attention.num_heads
            qh, kh, vh = (x[..., part * size : (part + 1) * size] for x in (q, k, v))
            heads.append((qh @ kh.transpose(1, 2) / math.sqrt(size)).softmax(-1) @ vh)
        return torch.cat(heads, -1)

    own = attention(*linear(tokens, "attention.qkv").chunk(3, dim=-1))
    tokens = norm(tokens + linear(own, "attention.out_proj"), "norm1")
    query = linear(tokens, "cross_attention.to_q")
    key, value = (linear(context, f"cross_attention.to_{name}") for name in "kv")
    tokens = norm(tokens + linear(attention(query, key, value), "cross_attention.out_proj"), "norm2")
    hidden = linear(tokens, "mlp.linear1")
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    tokens = norm(tokens + linear(hidden, "mlp.linear2"), "norm3")
    return tokens.transpose(1, 2).reshape(shape).float()


def scrambled(module):
    """The module with biases and norms that are not their neutral starting values."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 3])
def test_saca_is_the_formula_written_out(heads):
    saca = scrambled(SymmetryAwareCrossAttention(24, num_heads=heads)).eval()
    features, mirrored = torch.randn(2, 2, 24, 3, 2, 1).unbind()
    torch.testing.assert_close(saca(features, mirrored), by_hand(saca, features, mirrored), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_saca_gives_the_same_answer_twice_in_eval_mode_only():
    saca = scrambled(SymmetryAwareCrossAttention(24))
    features, mirrored = torch.randn(2, 2, 24, 2, 2, 2).unbind()
    assert not torch.equal(saca.train()(features, mirrored), saca(features, mirrored))
    assert torch.equal(saca.eval()(features, mirrored), saca(features, mirrored))


@torch.no_grad()
def test_a_fresh_saca_is_the_identity_on_normalised_features():
    saca = SymmetryAwareCrossAttention(24).eval()
    features = torch.nn.functional.layer_norm(torch.randn(2, 3, 2, 2, 24), [24]).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(saca(features, torch.randn_like(features)), features, atol=1e-4, rtol=1e-4)


def test_a_fresh_saca_learns_from_the_first_step():
    saca = SymmetryAwareCrossAttention(24)
    features, mirrored = torch.randn(2, 2, 24, 2, 2, 2).unbind()
    saca(features, mirrored).square().mul(torch.randn_like(features)).sum().backward()
    assert saca.cross_attention.out_proj.weight.grad.abs().max() > 0


@torch.no_grad()
def test_saca_sees_every_place_of_the_counterpart():
    saca = scrambled(SymmetryAwareCrossAttention(24)).eval()
    features, mirrored = torch.randn(2, 1, 24, 3, 1, 1).unbind()
    changed = mirrored.clone()
    changed[..., 2, 0, 0] += 1
    assert not torch.allclose(saca(features, changed)[..., 0, 0, 0], saca(features, mirrored)[..., 0, 0, 0])
    shuffled = mirrored.flip(2)  # no position encoding, no mask
    torch.testing.assert_close(saca(features, shuffled), saca(features, mirrored))


@torch.no_grad()
@pytest.mark.parametrize(("in_channels", "out_channels"), [(1, 3), (2, 1)])
def test_without_symmetry_it_is_monais_swin_unetr(small, in_channels, out_channels):
    reference = SwinUNETR(in_channels, out_channels, **small).eval()
    network = SASwinUNETR(out_channels, in_channels=in_channels, **small).eval()
    missing, unexpected = network.load_state_dict(reference.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith(("symmetry.", "comparisons.")) for name in missing)
    network.symmetry = Identity()  # the comparisons are silent at the start
    image = torch.randn(1, in_channels, 64, 32, 32)
    halves = torch.cat([image, torch.randn_like(image)], dim=1)
    # Not bit for bit: the fused attention and products of other sizes round differently.
    torch.testing.assert_close(network(halves), reference(image), atol=1e-4, rtol=1e-4)
    network.symmetry = network.comparisons = None
    torch.testing.assert_close(network(halves), reference(image), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("readout", ["places", "paper"])
def test_with_symmetry_it_is_monais_swin_unetr_with_saca_at_the_bottleneck(small, pair, readout):
    network = SASwinUNETR(2, readout, **small).eval()  # comparisons are silent at the start
    assert (network.comparisons is None) == (readout == "paper")
    image, mirrored = pair[:1, :1], pair[:1, 1:]
    hidden = network.swinViT(image)
    joined = by_hand(network.symmetry, hidden[BOTTLENECK], network.swinViT(mirrored)[BOTTLENECK])
    x = network.decoder5(network.encoder10(joined), hidden[3])
    x = network.decoder4(x, network.encoder4(hidden[2]))
    x = network.decoder3(x, network.encoder3(hidden[1]))
    x = network.decoder2(x, network.encoder2(hidden[0]))
    expected = network.out(network.decoder1(x, network.encoder1(image)))
    torch.testing.assert_close(network(pair[:1]), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_segmenters_skips_carry_how_each_place_differs_from_its_counterpart(small, pair):
    network = scrambled(SASwinUNETR(2, **small)).eval()
    image, mirrored = pair[:1, :1], pair[:1, 1:]
    scales = list(zip(network.swinViT(image), network.swinViT(mirrored), strict=True))

    def compared(carried, number, own, other):
        first, norm, _, last = network.comparisons[number]
        hidden = norm(first(torch.cat([own - other, (own - other).abs()], 1)))
        return carried + last(torch.where(hidden < 0, 0.01 * hidden, hidden))

    skips = network.skips((image, mirrored), scales)
    torch.testing.assert_close(skips[0], compared(network.encoder1(image), 0, image, mirrored), atol=1e-4, rtol=1e-4)
    for scale, both in enumerate(scales[:BOTTLENECK]):
        torch.testing.assert_close(skips[scale + 1], compared(both[0], scale + 1, *both), atol=1e-4, rtol=1e-4)
    alone = network.skips((image, image), [(own, own) for own, _ in scales])
    assert not torch.allclose(alone[0], skips[0], atol=1e-3)


@torch.no_grad()
def test_the_papers_classifier_is_a_normed_linear_head_on_the_means_of_all_tokens(small, pair):
    network = SASwinClassifier(3, readout="paper", **small).eval()
    scrambled(network.symmetry)
    norm, linear = network.head
    norm.running_mean.uniform_(-1, 1)
    image, mirrored = (network.swinViT(pair[:, half : half + 1])[BOTTLENECK] for half in (0, 1))
    mean = by_hand(network.symmetry, image, mirrored).flatten(2).mean(-1)
    normed = (mean - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    expected = (normed @ linear.weight.T + linear.bias).log_softmax(1)
    torch.testing.assert_close(network(pair), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_classifier_reads_each_place_and_how_far_it_differs_from_its_counterpart(small, pair):
    network = SASwinClassifier(3, **small).eval()
    scrambled(network.symmetry)
    images, counterparts = (network.swinViT(pair[:, half : half + 1]) for half in (0, 1))
    evidence = []
    for scale, (norm, linear) in zip((1, 2, 3, 4), network.head, strict=True):
        norm.running_mean.uniform_(-1, 1)
        image, mirrored = images[scale], counterparts[scale]
        features = by_hand(network.symmetry, image, mirrored) if scale == BOTTLENECK else image
        read = torch.cat([features, (image - mirrored).abs()], 1).flatten(2).transpose(1, 2)  # B N 2C
        read = (read - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        places = read @ linear.weight.flatten(1).T + linear.bias  # B N K
        evidence.append(places.exp().mean(1).log().log_softmax(-1))
    torch.testing.assert_close(
        network(pair), (8 * evidence[0] + 4 * evidence[1] + 2 * evidence[2] + evidence[3]) / 15, atol=1e-4, rtol=1e-4
    )


def test_each_scale_of_the_classifier_is_trained_by_itself(small, pair):
    network = SASwinClassifier(3, **small).train()
    labels, weights = torch.tensor([0, 2]), torch.tensor([1.0, 1.0, 5.0])
    logits = network(pair)
    assert logits.shape == (2, 3, 4)
    loss = GlobalBatchLoss(torch.nn.CrossEntropyLoss(weight=weights))(logits, labels)
    by_hand = [torch.nn.functional.cross_entropy(logits[..., scale], labels, weight=weights) for scale in range(4)]
    torch.testing.assert_close(loss, sum(by_hand) / 4)
    loss.backward()
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]


def test_a_peak_is_the_log_mean_exp_of_its_places():
    values = torch.tensor([[0.0, 0.0, 0.0, 2.0]])
    assert peak(values).item() == pytest.approx(math.log((3 + math.exp(2)) / 4))
    assert peak(values, 30.0).item() == pytest.approx(2 - math.log(4) / 30, abs=1e-5)
    assert peak(torch.full((1, 7), 0.3), 30.0).item() == pytest.approx(0.3)
    parts = torch.randn(3, 5)
    torch.testing.assert_close(peak(peak(parts, 30.0), 30.0), peak(parts.flatten(), 30.0))


def test_finer_scales_count_more_and_half_precision_does_not_touch_them():
    values = torch.tensor([[0.1, 0.7, 0.3, 0.9]])
    with torch.autocast("cpu", torch.bfloat16):
        found = mean_of_scales(values)
    assert found.item() == pytest.approx((8 * 0.1 + 4 * 0.7 + 2 * 0.3 + 0.9) / 15, abs=1e-6)
    assert peak(torch.full((1, 5), 1.003, dtype=torch.bfloat16), 30.0).dtype == torch.float32


def test_the_asymmetry_of_embeddings_by_hand():
    embedding = torch.tensor([[1.0, 2.0], [1.0, 0.0], [3.0, 0.0]])
    mirrored = torch.tensor([[2.0, 4.0], [0.0, 5.0], [-1.0, 0.0]])
    torch.testing.assert_close(asymmetry_of_places(embedding, mirrored), torch.tensor([0.0, 1.0, 2.0]))


def test_one_place_that_differs_shows_in_the_asymmetry_and_a_permutation_of_places_matters():
    features = torch.randn(2, 4, 3, 2, 2)
    assert asymmetry_of_places(features, 3 * features).abs().max() < 1e-6
    lesion = features.clone()
    lesion[0, :, 1, 0, 1] *= -1
    found = asymmetry_of_places(features, lesion)
    assert found[0, 1, 0, 1].item() == pytest.approx(2)
    assert found.sum().item() == pytest.approx(2, abs=1e-4)
    torch.testing.assert_close(found, asymmetry_of_places(lesion, features))
    moved = features.roll(1, dims=2)  # the same features at other places: pooling first would not see it
    torch.testing.assert_close(pool(moved), pool(features))
    assert asymmetry_of_places(features, moved).min() > 0


@torch.no_grad()
def test_the_pretrainers_asymmetry_is_the_mean_over_scales_of_the_peak_over_places(small, pair):
    network = SASwinPretrainer(embedding_size=8, **small).eval()
    images, counterparts = (network.swinViT(pair[:, half : half + 1]) for half in (0, 1))
    peaks = []
    for scale in (1, 2, 3, 4):
        cosine = torch.nn.functional.cosine_similarity(images[scale], counterparts[scale], dim=1).flatten(1)
        peaks.append((30 * (1 - cosine)).exp().mean(1).log() / 30)
    torch.testing.assert_close(
        network(pair)[:, 0], (8 * peaks[0] + 4 * peaks[1] + 2 * peaks[2] + peaks[3]) / 15, atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_the_papers_asymmetry_is_that_of_the_pooled_embeddings(small, pair):
    network = SASwinPretrainer(embedding_size=8, readout="paper", **small).eval()
    norm, linear = network.symmetry_head
    pooled = [network.swinViT(pair[:, half : half + 1])[BOTTLENECK].mean((2, 3, 4)) for half in (0, 1)]
    embeddings = [linear(norm(features)) for features in pooled]
    cosine = torch.nn.functional.cosine_similarity(*embeddings)
    torch.testing.assert_close(network(pair)[:, 0], 1 - cosine, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("network", [SASwinClassifier, SASwinPretrainer])
def test_an_unknown_readout_is_refused(network, small):
    with pytest.raises(ValueError, match="Unsupported option 'both'"):
        network(readout="both", **small)


@pytest.mark.parametrize("readout", ["places", "paper"])
def test_no_readout_brings_symmetry_into_the_classifiers_ablations(small, pair, readout):
    network = SASwinClassifier(2, symmetry="none", readout=readout, **small).eval()
    other = torch.cat([pair[:, :1], torch.randn_like(pair[:, 1:])], dim=1)
    assert torch.equal(network(pair), network(other))


def test_the_global_batch_norm_is_torchs_for_rows_and_for_volumes():
    for shape in ((6, 5), (3, 5, 2, 3, 4)):
        ours, theirs = GlobalBatchNorm(5), (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm3d)(5)
        for _ in range(3):
            features = 3 + torch.randn(shape)
            torch.testing.assert_close(ours(features), theirs(features), atol=1e-5, rtol=1e-4)
        for name, values in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], values, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.eval()(features), theirs.eval()(features), atol=1e-5, rtol=1e-4)


def test_a_batch_of_one_is_trained_on_with_the_running_statistics(small, pair):
    network = SASwinClassifier(3, symmetry="none", readout="paper", **small).train()
    torch.testing.assert_close(network(pair[:1]).squeeze(-1).log_softmax(1), network.eval()(pair[:1]))


@torch.no_grad()
@pytest.mark.parametrize("symmetry", ["saca", "channel", "none"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_counterpart_matters_except_where_it_is_switched_off(network, symmetry, small, pair):
    net = network(symmetry=symmetry, **small).eval()
    if net.symmetry is not None:
        scrambled(net.symmetry)
    if isinstance(net, SASwinPretrainer):  # the embedding of the image itself
        net.forward = lambda pair: pool(net.join(*(lambda h, m: (h[BOTTLENECK], m))(*net.encode(pair, True))))
    changed = torch.cat([pair[:1, :1], pair[:1, 1:] * 2], dim=1)
    assert torch.equal(net(changed), net(pair[:1])) == (symmetry == "none")


@torch.no_grad()
@pytest.mark.parametrize("readout", ["places", "paper"])
@pytest.mark.parametrize("symmetry", ["saca", "channel", "none"])
def test_swapping_the_halves_leaves_the_asymmetry(symmetry, readout, small, pair):
    network = SASwinPretrainer(symmetry=symmetry, readout=readout, embedding_size=8, **small)
    torch.testing.assert_close(network.pretext(pair.flip(1))["asymmetry"], network.pretext(pair)["asymmetry"])
    network.eval()
    torch.testing.assert_close(network(pair.flip(1))[:, 0], network(pair)[:, 0])
    assert network(pair)[:, 0].min() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("readout", ["places", "paper"])
def test_a_mirror_symmetric_brain_has_no_asymmetry(readout, small):
    half = torch.randn(1, 1, 32, 32, 32)
    brain = torch.cat([half, mirror(half)], dim=2)
    found = SASwinPretrainer(embedding_size=8, readout=readout, **small).eval()(symmetric_pair(brain))
    assert found[:, 0].abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("network", NETWORKS)
def test_one_case_of_a_batch_does_not_touch_another(network, small, pair):
    net = network(**small).eval()
    other = torch.cat([pair[:1], torch.randn_like(pair[1:])])
    torch.testing.assert_close(net(other)[0], net(pair)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net(pair[:1])[0], net(pair)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("readout", ["places", "paper"])
def test_the_pretext_outputs_have_their_shapes_and_reach_every_parameter(readout, small, pair):
    network = SASwinPretrainer(embedding_size=8, readout=readout, **small).train()
    outputs = network(pair)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "inpainting": (2, 1, 64, 32, 32),
        "rotation": (2, 4),
        "contrastive": (2, 8),
        "asymmetry": (2,),
    }
    sum(value.square().mean() for value in outputs.values()).backward()
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]


@torch.no_grad()
def test_the_inpainting_decoder_is_its_layers_in_order():
    decoder, features = InpaintingDecoder(64, 2), torch.randn(1, 64, 2, 1, 1)
    expected = features
    for layer in decoder:
        expected = layer(expected)
    assert expected.shape == (1, 2, 64, 32, 32)
    torch.testing.assert_close(decoder(features), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("network", "width"), [(SASwinPretrainer, 513), (SASwinClassifier, 2), (SASwinUNETR, 1)])
def test_in_eval_mode_one_tensor_comes_out(network, width, small, pair):
    assert network(**small).eval()(pair[:1]).shape[:2] == (1, width)


@pytest.mark.parametrize("readout", ["places", "paper"])
def test_the_asymmetry_is_read_before_the_cross_attention(readout, small, pair):
    network = SASwinPretrainer(embedding_size=8, readout=readout, **small).train()
    network(pair)["asymmetry"].sum().backward()
    assert all(parameter.grad is None for parameter in network.symmetry.parameters())
    assert network.swinViT.layers4[0].blocks[0].mlp.linear1.weight.grad is not None


def test_the_defaults_are_the_papers_sizes():
    network = SASwinPretrainer(readout="paper")
    assert network.swinViT.embed_dim == 48
    assert tuple(network.swinViT.window_size) == (7, 7, 7)
    assert tuple(network.swinViT.patch_size) == (2, 2, 2)
    assert [len(layers[0].blocks) for layers in (network.swinViT.layers1, network.swinViT.layers4)] == [2, 2]
    assert network.symmetry.cross_attention.num_heads == 12
    assert network.symmetry.cross_attention.to_q.weight.shape == (768, 768)
    assert network.symmetry.mlp.linear1.weight.shape == (3072, 768)
    assert network.symmetry_head[-1].weight.shape == (512, 768)
    assert [stage[0].out_channels for stage in list(network.decoder)[:5]] == [384, 192, 96, 48, 24]


@pytest.mark.parametrize("network", NETWORKS)
def test_an_unknown_variant_is_refused(network, small):
    with pytest.raises(ValueError, match="saca"):
        network(symmetry="sacca", **small)


@pytest.mark.parametrize("size", [(64, 32, 40), (32, 32, 32)])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_size_that_does_not_suit_is_refused(network, size, small):
    with pytest.raises(ValueError, match=rf"multiples of 32, one of them 64 or more, got \({size[0]}, 32, {size[2]}\)"):
        network(**small)(torch.zeros(1, 2, *size))


@pytest.mark.parametrize("network", NETWORKS)
def test_an_image_without_its_counterpart_is_refused(network, small):
    with pytest.raises(ValueError, match="even number of channels"):
        network(**small)(torch.zeros(1, 1, 64, 32, 32))
