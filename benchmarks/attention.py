"""Window attention by itself on a GPU: ours as one launch, a launch per kind of box, and torch's without a bias.

    python -m benchmarks.attention --output benchmarks/results/attention.json      # under a minute on an H200
    python -m benchmarks.attention --tune --output tuned.json                      # each kernel at many tiles, too

Errors are those against the formula in double precision. The plain case is 5,488 whole windows of 343 tokens; the
others are the stages of the encoder at feature size 48, ROI 96^3, 4 pairs, two views, with shift and without.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import fire
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.throughput import circumstances
from custom.networks import fused_attention
from custom.networks.fused_attention import Inputs, Tiles, expanded_bias, window_attention
from custom.networks.window_attention import attend, position_bias, tiling
from custom.networks.window_tables import WindowTables, window_tables

WIDTH = 16  # channels of a head at every stage of the published sizes
WINDOW = (7, 7, 7)


@dataclass(frozen=True)
class Case:
    """Volumes of cubes of tokens, whose windows are attended to."""

    volumes: int
    side: int
    shift: int
    heads: int

    @property
    def geometry(self) -> tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        return self.volumes, (self.side,) * 3, WINDOW, (self.shift,) * 3

    def tables(self) -> WindowTables:
        return window_tables(*self.geometry, self.heads).to(torch.device("cuda"))

    def tensors(self, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        """The qkv product, the values of a padded token and the bias table, and a gradient of the result."""
        torch.manual_seed(0)
        tokens, channels = self.volumes * self.side**3, self.heads * WIDTH
        shapes = (tokens, 3 * channels), (3 * channels,), (13**3, self.heads)
        product_, padding, table = (torch.randn(shape, device="cuda") for shape in shapes)
        inputs = [product_.to(dtype).requires_grad_(), padding.requires_grad_(), table.requires_grad_()]
        return inputs, torch.randn(tokens, channels, device="cuda").to(dtype)


PLAIN = Case(16, 49, 0, 3)
STAGES = [Case(16, side, shift, heads) for side, heads in ((48, 3), (24, 6), (12, 12)) for shift in (0, 3)]
CASES = [PLAIN, *STAGES, Case(16, 6, 0, 24)]
CHECKED = [Case(1, 12, 0, 2), Case(1, 12, 3, 2), Case(2, 14, 3, 3), Case(1, 6, 0, 24)]

CANDIDATES = {
    "forward": [(64, 64, 4), (64, 128, 4), (128, 64, 4), (128, 64, 8), (128, 128, 8), (64, 32, 4)],
    "grad_queries": [(64, 64, 4), (64, 128, 4), (128, 64, 4), (128, 64, 8), (64, 32, 4)],
    "grad_keys": [(64, 64, 4), (64, 128, 4), (128, 64, 4), (128, 128, 8), (64, 32, 4)],
    "grad_bias": [(64, 64, 4), (64, 32, 4), (128, 64, 8), (64, 128, 8), (64, 64, 8), (128, 32, 4)],
}
STAGES_OF_LOADS = (1, 2, 3)


def by_kind(case: Case, attention: Callable[..., Tensor] = attend) -> Callable[..., Tensor]:
    """The attention without kernels of ours: a launch per kind of box, tokens re-ordered before and after."""
    order, kinds = tiling(*case.geometry)
    order = torch.from_numpy(order).cuda()
    kinds = [kind.to(order.device) for kind in kinds]

    def run(qkv: Tensor, padding: Tensor, table: Tensor) -> Tensor:
        parts = qkv[order].unflatten(1, (3, case.heads, -1)).split([kind.count * kind.tokens for kind in kinds])
        found = []
        for kind, part in zip(kinds, parts, strict=True):
            query, key, value = part.unflatten(0, (kind.count, -1)).permute(2, 0, 3, 1, 4)
            if kind.padding is not None:
                pads = padding.to(qkv.dtype).view(3, 1, case.heads, 1, -1).expand(-1, kind.count, -1, -1, -1)[1:]
                key, value = (torch.cat([x, pad], 2) for x, pad in zip((key, value), pads, strict=True))
            out = attention(query, key, value, position_bias(table, kind).to(qkv.dtype))
            found.append(out.transpose(1, 2).reshape(kind.count * kind.tokens, -1))
        return torch.empty_like(torch.cat(found)).index_copy(0, order, torch.cat(found))

    return run


def formula(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """What all of them compute."""
    return (query @ key.mT * query.shape[-1] ** -0.5 + bias).softmax(-1) @ value


def without_bias(case: Case) -> Callable[..., Tensor]:
    """Torch's attention of whole windows one after another, in the order in which they lie."""

    def run(qkv: Tensor, padding: Tensor, table: Tensor) -> Tensor:
        query, key, value = qkv.view(-1, 343, 3, case.heads, WIDTH).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(len(qkv), -1)

    return run


def ours(case: Case) -> Callable[..., Tensor]:
    """One launch forward, five backward, from tokens as they lie to tokens as they lie."""
    tables = case.tables()
    return lambda qkv, padding, table: window_attention(qkv, padding, table, tables)


def with_gradients(run: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """The result, and its gradients to all inputs."""
    out = run(*inputs)
    return [out, *torch.autograd.grad(out, inputs, grad, allow_unused=True, materialize_grads=True)]


def errors(case: Case, dtype: torch.dtype) -> dict[str, list[float]]:
    """Relative errors of the result and its three gradients, ours and those of a launch per kind of box."""
    inputs, grad = case.tensors(dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = with_gradients(by_kind(case, formula), exact, grad.double())
    contestants = {"ours": ours(case), "per kind": by_kind(case)}
    return {
        name: [
            ((found.double() - tensor).norm() / tensor.norm().clamp(min=1e-30)).item()
            for found, tensor in zip(with_gradients(run, inputs, grad), expected, strict=True)
        ]
        for name, run in contestants.items()
    }


def milliseconds(run: Callable[[], Any]) -> float:
    """Median time of a call on the GPU."""
    from triton.testing import do_bench

    return do_bench(run, warmup=10, rep=60, return_mode="median")


def times(case: Case, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Milliseconds forward and in both directions."""
    inputs, grad = case.tensors(dtype)
    contestants = {"ours": ours(case), "per kind": by_kind(case)}
    if case == PLAIN:
        contestants["torch's, no bias"] = without_bias(case)
    return {
        name: {
            "forward": milliseconds(lambda run=run: run(*inputs)),
            "both": milliseconds(lambda run=run: with_gradients(run, inputs, grad)),
        }
        for name, run in contestants.items()
    }


def kernels(case: Case) -> dict[str, Callable[[], Any]]:
    """Each kernel's launch on a case, by itself, in bf16."""
    (qkv, padding, table), grad = case.tensors(torch.bfloat16)
    tables = case.tables()
    inputs = Inputs(qkv.detach(), padding.detach(), expanded_bias(table.detach(), tables, qkv.detach()), tables)
    out, lse = fused_attention.forward(inputs)
    grad_qkv = torch.empty_like(inputs.qkv)
    delta = fused_attention.grad_queries(inputs, out, lse, grad, grad_qkv)
    parts = fused_attention.grad_bias(inputs, lse, grad, delta)
    return {
        "forward": lambda: fused_attention.forward(inputs),
        "grad_queries": lambda: fused_attention.grad_queries(inputs, out, lse, grad, grad_qkv),
        "grad_keys": lambda: fused_attention.grad_keys(inputs, lse, grad, delta, grad_qkv),
        "grad_bias": lambda: fused_attention.grad_bias(inputs, lse, grad, delta),
        "expanded_bias": lambda: expanded_bias(table.detach(), tables, inputs.qkv),
        "summed_bias": lambda: fused_attention.summed_bias(parts, table.detach(), tables),
    }


def candidates() -> Iterator[tuple[str, Tiles]]:
    """Every kernel with each of its tiles."""
    for name, tiles in CANDIDATES.items():
        for shape, stages in product(tiles, STAGES_OF_LOADS):
            yield name, Tiles(*shape, stages)


def compile_one(candidate: tuple[str, Tiles]) -> None:
    """Fill Triton's cache on the disk, in a process of its own."""
    name, tiles = candidate
    fused_attention.LAUNCHES[name] = tiles
    kernels(Case(1, 14, 0, 3))[name]()


def tuned(case: Case) -> list[dict[str, Any]]:
    """Milliseconds of each kernel at each tile."""
    with ProcessPoolExecutor(12, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_one, candidates()))
    rows, launches = [], kernels(case)
    for name, tiles in candidates():
        kept, fused_attention.LAUNCHES[name] = fused_attention.LAUNCHES[name], tiles
        try:
            rows.append({"kernel": name, **tiles._asdict(), "ms": milliseconds(launches[name])})
        except RuntimeError as error:  # more shared memory or registers than there are
            rows.append({"kernel": name, **tiles._asdict(), "error": str(error).splitlines()[0]})
        fused_attention.LAUNCHES[name] = kept
        print(rows[-1], flush=True)
    return rows


def main(output: str, tune: bool = False) -> None:
    """Write everything to a JSON file; print it as it comes."""
    result: dict[str, Any] = circumstances("cuda") | {"errors": [], "times": [], "kernels": [], "tuned": []}
    for case, dtype in product(CHECKED, (torch.float32, torch.bfloat16, torch.float16)):
        result["errors"].append({"case": vars(case), "dtype": str(dtype), **errors(case, dtype)})
        print(result["errors"][-1], flush=True)
    for case in CASES:
        result["times"].append({"case": vars(case), **times(case, torch.bfloat16)})
        print(result["times"][-1], flush=True)
    for case in CASES:
        found = {name: milliseconds(launch) for name, launch in kernels(case).items()}
        result["kernels"].append({"case": vars(case), **found})
        print(result["kernels"][-1], flush=True)
    if tune:
        result["tuned"] = tuned(PLAIN)
    Path(output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
