"""Channels-last blocks: MONAI's and torch's numbers and gradients, in the layout that is fast on a CPU."""

import pytest
import torch
from monai.networks.blocks import UnetrBasicBlock, UnetrUpBlock
from torch import nn

from custom.networks.channels_last import InstanceNorm, PointwiseConv, channels_last, use_channels_last
from custom.networks.segmenter import SASwinUNETR

LAST = torch.channels_last_3d


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_come_last_in_memory_and_values_stay(channels):
    volumes = torch.randn(2, channels, 4, 5, 6)
    moved = channels_last(volumes)
    assert torch.equal(moved, volumes)
    assert moved.stride()[1] == 1
    assert moved.stride()[4] == channels
    assert channels_last(moved).data_ptr() == moved.data_ptr()  # nothing is copied twice


def outputs_and_gradients(module, *inputs):
    inputs = [tensor.clone(memory_format=torch.preserve_format).requires_grad_() for tensor in inputs]
    module.zero_grad()
    output = module(*inputs)
    output.square().mean().backward()
    return [output, *(tensor.grad for tensor in inputs), *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("block", ["basic", "up"])
def test_a_block_of_the_decoder_computes_what_monais_does(block, batch):
    torch.manual_seed(0)
    make, inputs = {
        "basic": (lambda: UnetrBasicBlock(3, 3, 5, 3, 1, "instance", res_block=True), [(batch, 3, 8, 9, 10)]),
        "up": (
            lambda: UnetrUpBlock(3, 6, 4, 3, 2, "instance", res_block=True),
            [(batch, 6, 4, 4, 4), (batch, 4, 8, 8, 8)],
        ),
    }[block]
    theirs, ours = make().double(), make().double()
    ours.load_state_dict(theirs.state_dict())
    use_channels_last(ours)
    tensors = [torch.randn(shape, dtype=torch.float64) * 2 + 3 for shape in inputs]
    expected = outputs_and_gradients(theirs, *tensors)
    found = outputs_and_gradients(ours, *map(channels_last, tensors))
    assert found[0].is_contiguous(memory_format=LAST)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_norm_is_of_each_volume_by_itself():
    volumes = channels_last(torch.randn(2, 3, 4, 4, 4) * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1, 1))
    found = InstanceNorm(3)(volumes)
    torch.testing.assert_close(found.std((2, 3, 4), correction=0), torch.ones(2, 3), rtol=1e-3, atol=0)
    torch.testing.assert_close(found, nn.InstanceNorm3d(3)(volumes), atol=1e-5, rtol=1e-5)


def test_what_has_parameters_or_a_larger_kernel_stays_as_it_is():
    module = nn.Sequential(
        nn.InstanceNorm3d(2, affine=True),
        *(nn.Conv3d(2, 2, size, **options) for size, options in ((3, {}), (1, {"stride": 2}), (1, {"padding": 1}))),
        nn.Conv3d(2, 2, 1),
    )
    use_channels_last(module)
    assert [type(part) for part in module] == [nn.InstanceNorm3d, *[nn.Conv3d] * 3, PointwiseConv]


def test_the_segmenters_full_size_features_are_in_channels_last_memory():
    network = SASwinUNETR(feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=4).eval()
    seen = {}
    for name in ("encoder1", "decoder1"):
        getattr(network, name).register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
    with torch.no_grad():
        network(torch.randn(2, 2, 64, 32, 32))
    assert all(output.is_contiguous(memory_format=LAST) for output in seen.values())


def test_what_is_traced_has_the_operators_of_any_machine():
    norm = InstanceNorm(3)
    traced = torch.jit.trace(norm, torch.randn(2, 3, 4, 4, 4))
    other = torch.randn(5, 3, 4, 4, 4)  # not the batch that it was traced with
    torch.testing.assert_close(traced(other), nn.InstanceNorm3d(3)(other))
