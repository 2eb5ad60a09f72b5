"""What the throughput benchmark times: one step of a task with one implementation."""

import contextlib
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.stock import StockClassifier, StockPretrainer, StockUNETR
from custom.evaluation.inferers import MirroredSlidingWindow, symmetric_starts
from custom.losses import PretextLoss
from custom.networks.classifier import SASwinClassifier
from custom.networks.pretrainer import SASwinPretrainer
from custom.networks.segmenter import SASwinUNETR
from custom.symmetry import mirror, symmetric_pair
from custom.training.replay import ReplayedStep

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NETWORKS = {"pretrain": (SASwinPretrainer, StockPretrainer), "classify": (SASwinClassifier, StockClassifier)}


@dataclass(frozen=True)
class Cell:
    """One figure to measure.

    Args:
        task: pretrain, classify, segment, infer, or infer_mirrored (with mirror test-time augmentation).
        implementation: `ours`, which a GPU replays as a CUDA graph, as in the bundles, or ` launched` by the host;
            `stock` (MONAI's naive attention, one pass per view and half), `stock best` (one pass
            for all, MONAI's fused attention where it acts); with ` recomputed`, gradient checkpointing; with
            ` compiled`, torch.compile. On a CPU, AdamW is fused in `ours` alone, as in the bundles.
        dtype: fp32 or bf16 (autocast).
        feature_size: of the encoder.
        batch: symmetric pairs; two views of each in pretraining.
        roi: side of the ROI in voxels.
        volume: X, Y, Z of the volume, for inference.
        device: cpu or cuda.
    """

    task: str
    implementation: str
    dtype: str
    feature_size: int
    batch: int
    roi: int
    volume: tuple[int, int, int]
    device: str


def build(cell: Cell, wrap: Callable[[nn.Module], nn.Module] = lambda network: network) -> Callable[[], Tensor]:
    """A function that does one step and returns its loss or logits; `wrap` distributes or compiles the network."""
    torch.manual_seed(0)
    device = torch.device(cell.device)
    network = build_network(cell).to(device)
    size = cell.volume if cell.task.startswith("infer") else (cell.roi,) * 3
    count = cell.batch * (2 if cell.task == "pretrain" else 1)
    generator = torch.Generator().manual_seed(0)
    pair = symmetric_pair(torch.randn(count, 1, *size, generator=generator)).to(device)
    if cell.task.startswith("infer"):
        return inference(cell, wrap(network.eval()), pair)
    fused = cell.device == "cuda" or not cell.implementation.startswith("stock") or None
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=fused)
    loss_of = objective(cell, pair)
    run = wrap(network)

    def gradients() -> Tensor:
        with autocast(cell):
            loss = loss_of(run(pair))
        loss.backward()
        return loss.detach()

    replayed = ReplayedStep(gradients, list(network.parameters()), enabled=is_replayed(cell))

    def step() -> Tensor:
        loss = replayed()
        optimizer.step()
        return loss

    return step


def is_replayed(cell: Cell) -> bool:
    """Whether its training step is replayed as a CUDA graph."""
    return cell.device == "cuda" and cell.implementation.startswith("ours") and "launched" not in cell.implementation


def autocast(cell: Cell) -> contextlib.AbstractContextManager[Any]:
    """The precision of the cell."""
    half = cell.dtype == "bf16"
    return torch.autocast(cell.device, torch.bfloat16) if half else contextlib.nullcontext()


def build_network(cell: Cell) -> nn.Module:
    """The task's network, ours or of stock parts, in training mode."""
    stock = cell.implementation.startswith("stock")
    recomputed = "recomputed" in cell.implementation
    ours_class, stock_class = NETWORKS.get(cell.task, (SASwinUNETR, StockUNETR))
    if stock:
        separate = not cell.implementation.startswith("stock best")
        return stock_class(cell.feature_size, separate, recomputed).train()
    outputs = {} if cell.task in NETWORKS else {"out_channels": 2}
    return ours_class(feature_size=cell.feature_size, readout="paper", use_checkpoint=recomputed, **outputs).train()


def objective(cell: Cell, pair: Tensor) -> Callable[[Any], Tensor]:
    """The task's loss, with fixed targets."""
    labels = (torch.arange(len(pair)) % 2).to(pair.device)
    if cell.task == "pretrain":
        loss = PretextLoss()
        targets = {"image": pair[:, :1], "rotation": labels, "healthy": labels.bool()}
        return lambda pred: loss(pred, targets)
    if cell.task == "classify":
        return lambda logits: nn.functional.cross_entropy(logits.squeeze(-1), labels)  # the paper's readout: one scale
    dice, mask = DiceCELoss(to_onehot_y=True, softmax=True), (pair[:, :1] > 1).long()
    return lambda logits: dice(logits.float(), mask)


def inference(cell: Cell, network: nn.Module, pair: Tensor) -> Callable[[], Tensor]:
    """Whole-volume segmentation; stock MONAI runs the mirrored brain as a volume of its own."""
    mirrored = cell.task == "infer_mirrored"
    settings = {"roi_size": (cell.roi,) * 3, "sw_batch_size": cell.batch, "overlap": 0.5, "mode": "gaussian"}
    ours, stock = MirroredSlidingWindow(**settings, mirrored=mirrored), SlidingWindowInferer(**settings)

    @torch.no_grad()
    def step() -> Tensor:
        with autocast(cell):
            if not cell.implementation.startswith("stock"):
                return ours(pair[:1], network)
            logits = stock(pair[:1], network)
            return (logits + mirror(stock(pair[:1].flip(1), network))) / 2 if mirrored else logits

    return step


def samples(cell: Cell) -> int:
    """Pairs (training) or volumes (inference) that one step does."""
    return 1 if cell.task.startswith("infer") else cell.batch


def flops(cell: Cell) -> int:
    """Floating-point operations of a step's products and convolutions, counted without computing them."""
    network = build_network(cell).to("meta")
    training = not cell.task.startswith("infer")
    count = cell.batch * (2 if cell.task == "pretrain" else 1)
    pair = torch.empty(count, 2, *[cell.roi] * 3, device="meta")
    with FlopCounterMode(display=False) as counter:
        if training:
            objective(cell, pair)(network(pair)).backward()
        else:
            with torch.no_grad():
                network.eval().predict_both(pair) if is_mirrored_by_ours(cell) else network.eval()(pair)
    return counter.get_total_flops() if training else round(counter.get_total_flops() * window_batches(cell))


def is_mirrored_by_ours(cell: Cell) -> bool:
    """Whether one run of the encoder serves the mirrored brain, too."""
    return cell.task == "infer_mirrored" and not cell.implementation.startswith("stock")


def window_batches(cell: Cell) -> float:
    """Batches of windows that the network sees of a volume, those of the mirrored brain included where they are run."""
    starts = [symmetric_starts(size, min(size, cell.roi), 0.5) for size in cell.volume]
    runs = 2 if cell.task == "infer_mirrored" and not is_mirrored_by_ours(cell) else 1
    return runs * math.prod(map(len, starts)) / cell.batch


def memory() -> int:
    """Peak resident bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(step: Callable[[], Tensor]) -> tuple[float, float, float]:
    """Seconds of a step by the clock and of the CPU, and its result's mean."""
    start, cpu = time.perf_counter(), time.process_time()
    mean = step().float().mean().item()  # waits for the GPU
    return time.perf_counter() - start, time.process_time() - cpu, mean


def measured_peak(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product, the best of several."""
    side = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, side, side, device=device, dtype=dtype).unbind()
    best = math.inf
    for _ in range(6):
        best = min(best, timed(lambda: a @ b)[0])
    return 2 * side**3 / best


def serve(cell: Cell, connection: Connection) -> None:
    """Answer requests of the driver until it says `stop`: `warm`, `step`, `memory`; an error comes back as text."""
    baseline = memory()
    step = None
    while (request := connection.recv()) != "stop":
        try:
            if request == "warm":
                count = flops(cell)
                step = build(cell)
                connection.send((count, timed(step)))
            elif request == "step":
                connection.send(timed(step))
            else:
                connection.send(memory() - baseline)
        except RuntimeError as error:  # out of memory, too
            connection.send(str(error).splitlines()[0])
