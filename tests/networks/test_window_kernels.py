"""Triton's kernels in its interpreter, on a CPU: the numbers of MONAI's slow path for every kind of box."""

import os
import subprocess
import sys

import pytest
import torch
from monai.networks.nets.swin_unetr import BasicLayer, PatchMerging

from custom.networks import fused_attention
from custom.networks.encoder import FusedStage
from custom.networks.fused_attention import in_one_launch, runs_kernels, window_attention
from custom.networks.window_attention import attend, position_bias, tiling
from custom.networks.window_tables import kinds, window_tables

GEOMETRIES = [  # batch, tokens, window and shift: whole windows; padded; padded and shifted; fewer tokens than a window
    (2, (4, 4, 2), (2, 2, 2), (1, 0, 0)),
    (1, (8, 4, 2), (3, 3, 3), (0, 0, 0)),
    (1, (8, 4, 2), (3, 3, 3), (1, 1, 1)),
    (1, (6, 4, 2), (4, 4, 4), (2, 2, 2)),
]


interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="run by the test of Triton's interpreter, in its own process"
)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is that process")
@pytest.mark.slow
def test_in_tritons_interpreter():
    """Triton decides on its interpreter when it is imported, which torch may have done here already."""
    pytest.importorskip("triton")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "attention_of_each_kind or slow_path",
    ]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]


def by_kind(qkv, padding, table, geometry):
    """The attention of each kind of box by itself, as on a device without kernels."""
    order, boxes = tiling(*geometry)
    order = torch.from_numpy(order)
    heads = table.shape[1]
    found = []
    for kind, part in zip(boxes, qkv[order].split([kind.count * kind.tokens for kind in boxes]), strict=True):
        query, key, value = part.view(kind.count, -1, 3, heads, qkv.shape[1] // 3 // heads).permute(2, 0, 3, 1, 4)
        if kind.padding is not None:
            pads = padding.view(3, 1, heads, 1, -1).expand(-1, kind.count, -1, -1, -1)
            key, value = torch.cat([key, pads[1]], 2), torch.cat([value, pads[2]], 2)
        out = attend(query, key, value, position_bias(table, kind))
        found.append(out.transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(found)[order.argsort()]


def inputs_of(geometry, heads, width, dtype=torch.float32):
    torch.manual_seed(0)
    batch, size, window, _ = geometry
    rows = torch.tensor([2 * side - 1 for side in window]).prod()
    tokens = batch * torch.tensor(size).prod()
    shapes = (tokens, 3 * heads * width), (3 * heads * width,), (rows, heads)
    return [torch.randn(*shape).to(dtype).requires_grad_() for shape in shapes]


@interpreted
@pytest.mark.parametrize(
    ("geometry", "heads", "width", "dtype", "tolerance"),
    [
        (GEOMETRIES[0], 2, 4, torch.float32, 1e-5),
        (GEOMETRIES[2], 1, 20, torch.float32, 1e-5),
        (GEOMETRIES[3], 1, 16, torch.float16, 1e-2),
    ],
)
def test_the_kernels_give_the_attention_of_each_kind_of_box_and_its_gradients(geometry, heads, width, dtype, tolerance):
    inputs = inputs_of(geometry, heads, width, dtype)
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    found = window_attention(*inputs, window_tables(*geometry, heads))
    expected = by_kind(*exact, geometry)
    grad = torch.randn_like(expected)
    kwargs = {"allow_unused": True, "materialize_grads": True}
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, grad.to(dtype), **kwargs),
        torch.autograd.grad(expected, exact, grad, **kwargs),
        strict=True,
    ):
        torch.testing.assert_close(ours.float(), theirs, atol=tolerance * theirs.abs().max().item(), rtol=0.0)


@interpreted
def test_a_stage_is_monais_slow_path():
    torch.manual_seed(0)
    layer = BasicLayer(12, 2, 2, (3, 3, 3), [0.0, 0.0], qkv_bias=True, downsample=PatchMerging)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    volumes = torch.randn(1, 12, 8, 4, 2, requires_grad=True)
    expected = layer(volumes)
    parameters = dict(layer.named_parameters())
    grad = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, [volumes, *parameters.values()], grad)

    tokens = volumes.permute(0, 2, 3, 4, 1)
    assert in_one_launch(tokens)
    found = FusedStage(layer)(tokens).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for name, ours, theirs in zip(
        ["tokens", *parameters],
        torch.autograd.grad(found, [volumes, *parameters.values()], grad),
        gradients,
        strict=True,
    ):
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max() + 1e-5, name


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_each_token_lies_in_one_box_and_each_line_is_one_tokens(geometry):
    tables, found = window_tables(*geometry, 2), kinds(*geometry)
    tokens, lines = [], []
    for first, n, _, places, _, _, line, _ in tables.boxes.tolist():
        tokens += (first + tables.places[places : places + n]).tolist()
        lines += range(line, line + n)
    assert sorted(tokens) == sorted(lines) == list(range(tables.tokens))
    assert len(tables.boxes) == sum(len(kind.first) for kind in found)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_sums_for_the_bias_take_each_entry_once_and_each_box_once(geometry):
    tables, found = window_tables(*geometry, 2), kinds(*geometry)
    values = torch.randn(len(tables.index), dtype=torch.float64)
    rows = len(tables.starts) - 1
    sums = [values[tables.order[a:b]].sum() for a, b in zip(tables.starts[:-1], tables.starts[1:], strict=True)]
    real = tables.index >= 0
    expected = torch.zeros(rows, dtype=torch.float64).index_add(0, tables.index[real], values[real])
    torch.testing.assert_close(torch.stack(sums), expected)
    covered = [box for first, count, _ in tables.groups.tolist() for box in range(first, first + count)]
    assert sorted(covered) == list(range(len(tables.boxes)))
    assert len(tables.groups) == len(found) * tables.parts


def test_where_kernels_cannot_be_made_the_other_way_is_taken_with_a_warning(monkeypatch):
    runs_kernels.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(fused_attention, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "custom.networks.window_kernels", None)
    with pytest.warns(UserWarning, match="Triton's kernels do not run on cpu, so attention is slower there"):
        assert not in_one_launch(torch.zeros(1))
    runs_kernels.cache_clear()


def test_a_cpu_takes_the_other_way(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    runs_kernels.cache_clear()
    assert not in_one_launch(torch.zeros(1))
