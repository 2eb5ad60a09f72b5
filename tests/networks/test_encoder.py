import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformer, WindowAttention

from custom.networks import window_attention as attention
from custom.networks.encoder import SwinEncoder
from custom.networks.window_attention import attend, attend_in_parts, intervals, relative_position_index

SIZES = [  # the window, and an image whose tokens fill the windows, need padding, or are fewer than a window
    (4, (64, 32, 32)),
    (7, (64, 32, 32)),
    (5, (32, 96, 64)),
]


def swin(window, **kwargs):
    """MONAI's encoder with parameters far from their neutral starting values, the same every time."""
    torch.manual_seed(0)
    network = SwinTransformer(1, 12, (window,) * 3, (2, 2, 2), (2, 2, 1, 1), (3, 6, 12, 24), **kwargs)
    for parameter in network.parameters():
        if parameter.dim() == 1 or len(parameter) == (2 * window - 1) ** 3:  # biases, norms, the position biases
            torch.nn.init.normal_(parameter)
    return network


def features_and_gradients(network, image, target):
    """The five features, and the gradients of all parameters and of the image; all of one size per tensor."""
    image = image.clone().requires_grad_()
    features = network(image)
    loss = sum((f.float() * t).mean() for f, t in zip(features, target, strict=True))
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(loss, [image, *parameters.values()])
    return dict(zip(["0", "1", "2", "3", "4", "image", *parameters], [*features, *gradients], strict=True))


def largest_differences(results, expected):
    """Of each tensor, the largest difference as a share of its largest value."""
    return {
        name: ((results[name].float() - tensor.float()).abs().max() / tensor.float().abs().max()).item()
        for name, tensor in expected.items()
    }


def distances(results, expected):
    """Of each tensor, the norm of the difference as a share of its norm."""
    return {
        name: ((results[name].float() - t.float()).norm() / t.float().norm()).item() for name, t in expected.items()
    }


def target_of(image):
    sizes = [(12 * 2**i, *(side // 2 ** (i + 1) for side in image.shape[2:])) for i in range(5)]
    return [torch.randn(len(image), *size) for size in sizes]


@pytest.mark.parametrize(("window", "size"), SIZES)
def test_features_and_gradients_are_those_of_monais_slow_path(window, size):
    image = torch.randn(2, 1, *size)
    target = target_of(image)
    expected = features_and_gradients(swin(window), image, target)
    found = features_and_gradients(SwinEncoder(swin(window)), image, target)
    assert max(largest_differences(found, expected).values()) < 1e-4


@pytest.mark.parametrize(("window", "size"), SIZES[1:])
def test_in_bf16_it_is_as_near_to_fp32_as_monais_slow_path(window, size):
    image = torch.randn(1, 1, *size)
    target = target_of(image)
    exact = features_and_gradients(swin(window), image, target)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = distances(features_and_gradients(swin(window), image, target), exact)
        ours = distances(features_and_gradients(SwinEncoder(swin(window)), image, target), exact)
    assert all(ours[name] < 2 * theirs[name] + 0.01 for name in exact)
    assert all(ours[str(scale)] < 0.01 for scale in range(5))


@torch.no_grad()
@pytest.mark.parametrize(("window", "size"), SIZES)
def test_without_gradients_the_features_are_the_same(window, size):
    image = torch.randn(1, 1, *size)
    expected = dict(enumerate(swin(window)(image)))
    found = dict(enumerate(SwinEncoder(swin(window))(image)))
    assert max(largest_differences(found, expected).values()) < 1e-4


def test_recomputing_activations_changes_nothing():
    image = torch.randn(1, 1, 64, 32, 32)
    target = target_of(image)
    expected = features_and_gradients(SwinEncoder(swin(7)), image, target)
    found = features_and_gradients(SwinEncoder(swin(7, use_checkpoint=True)), image, target)
    assert max(largest_differences(found, expected).values()) < 1e-6


@pytest.mark.parametrize("scores", [1, 1000, 2**30])
@pytest.mark.parametrize("way", ["cpu", "gpu"])
def test_gradients_of_the_attention_are_those_of_the_formula(way, scores, monkeypatch):
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", scores)
    shapes = (5, 3, 20, 4), (5, 3, 21, 4), (5, 3, 21, 4), (3, 20, 21)
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    query, key, value, bias = inputs
    expected = ((query @ key.mT) * 4**-0.5 + bias).softmax(-1) @ value
    grad = torch.randn_like(expected)
    found = attend(*inputs) if way == "cpu" else attend_in_parts(*inputs, scores_at_once=scores)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), atol=1e-5, rtol=1e-4
    )


def by_hand(size, window, shift):
    """Pieces of an axis as MONAI's padding, roll, windows and mask make them: (start, tokens, padding, place)."""
    padded = -(-size // window) * window
    rolled = [(i + shift) % padded for i in range(padded)]
    pieces = set()
    for first in range(0, padded, window):
        last = shift > 0 and first == padded - window
        cut = window - shift if last else window
        for places in (range(cut), range(cut, window)):
            held = [(rolled[first + place], place) for place in places]
            real = [token for token in held if token[0] < size]
            if real:
                pieces.add((real[0][0], len(real), len(held) - len(real), real[0][1]))
    return pieces


@pytest.mark.parametrize("window", range(2, 9))
def test_an_axis_is_cut_as_padding_roll_windows_and_mask_cut_it(window):
    for size in range(window + 1, 40):
        for shift in (0, window // 2):
            pieces = {
                (piece.start + i * piece.length, piece.length, piece.padding, piece.place)
                for piece in intervals(size, window, shift)
                for i in range(piece.count)
            }
            assert pieces == by_hand(size, window, shift)


@pytest.mark.parametrize("window", [(7, 7, 7), (2, 3, 4)])
def test_the_index_of_relative_positions_is_monais(window):
    assert (relative_position_index(window) == WindowAttention(3, 1, window).relative_position_index.numpy()).all()


def test_weights_go_both_ways_and_the_index_is_not_saved():
    theirs, ours = swin(4), SwinEncoder(swin(4))
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for parameter in ours.parameters():
        torch.nn.init.zeros_(parameter)
    saved = theirs.state_dict()
    ours.load_state_dict(saved, strict=True)  # holds the index, as every checkpoint of MONAI's does
    assert any(name.endswith("relative_position_index") for name in saved)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in ours.state_dict().items())
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert len(missing) == 6
    assert all(name.endswith("relative_position_index") for name in missing)


@torch.no_grad()
def test_an_export_computes_the_same_and_leaves_nothing_behind():
    network, image = SwinEncoder(swin(4)).eval(), torch.randn(1, 1, 64, 32, 32)
    exported = torch.export.export(network, (image,)).module()
    torch.testing.assert_close(exported(image), network(image), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_traced_network_is_saved_and_computes_the_same(tmp_path):
    network = SwinEncoder(swin(4)).eval()
    torch.jit.save(torch.jit.trace(network, torch.randn(1, 1, 64, 32, 32)), tmp_path / "traced.ts")
    image = torch.randn(1, 1, 64, 32, 32)
    torch.testing.assert_close(torch.jit.load(tmp_path / "traced.ts")(image), network(image), atol=1e-5, rtol=1e-4)
