"""What the throughput benchmark times: one step of a task with one implementation, in a process of its own."""

import math
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.stock import StockClassifier, StockPretrainer, StockUNETR
from custom.evaluation.inferers import MirroredSlidingWindow
from custom.losses import PretextLoss
from custom.networks.classifier import SASwinClassifier
from custom.networks.pretrainer import SASwinPretrainer
from custom.networks.segmenter import SASwinUNETR
from custom.symmetry import mirror, symmetric_pair

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NETWORKS = {"pretrain": (SASwinPretrainer, StockPretrainer), "classify": (SASwinClassifier, StockClassifier)}


@dataclass(frozen=True)
class Cell:
    """One figure to measure.

    Args:
        task: pretrain, classify, segment, infer, or infer_mirrored (with mirror test-time augmentation).
        implementation: `ours`; `stock` (MONAI's naive attention, one pass per view and half), `stock best` (one pass
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

    def step() -> Tensor:
        optimizer.zero_grad()
        with autocast(cell):
            loss = loss_of(run(pair))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def autocast(cell: Cell) -> torch.autocast:
    """The precision of the cell."""
    return torch.autocast(cell.device, torch.bfloat16, enabled=cell.dtype == "bf16")


def build_network(cell: Cell) -> nn.Module:
    """The task's network, ours or of stock parts, in training mode."""
    stock = cell.implementation.startswith("stock")
    recomputed = "recomputed" in cell.implementation
    ours_class, stock_class = NETWORKS.get(cell.task, (SASwinUNETR, StockUNETR))
    if stock:
        separate = not cell.implementation.startswith("stock best")
        return stock_class(cell.feature_size, separate, recomputed).train()
    outputs = {"readout": "paper"} if cell.task in NETWORKS else {"out_channels": 2}
    return ours_class(feature_size=cell.feature_size, use_checkpoint=recomputed, **outputs).train()


def objective(cell: Cell, pair: Tensor) -> Callable[[Any], Tensor]:
    """The task's loss, with fixed targets."""
    labels = (torch.arange(len(pair)) % 2).to(pair.device)
    if cell.task == "pretrain":
        loss = PretextLoss()
        targets = {"image": pair[:, :1], "rotation": labels, "healthy": labels.bool()}
        return lambda pred: loss(pred, targets)
    if cell.task == "classify":
        return lambda logits: nn.functional.cross_entropy(logits, labels)
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


def attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Two products of torch's fused CPU kernel, which its flop counter does not know."""
    batch, heads, n, width = query
    return 4 * batch * heads * n * key[2] * width


def flops(step: Callable[[], Tensor]) -> int:
    """Floating-point operations of a step's products and convolutions."""
    known = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        step()
    return counter.get_total_flops()


def memory(device: str) -> int:
    """Peak bytes of this process so far: resident (CPU) or allocated (GPU)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(step: Callable[[], Tensor], device: str) -> tuple[float, float, float]:
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
        best = min(best, timed(lambda: a @ b, device)[0])
    return 2 * side**3 / best


def serve(cell: Cell, connection: Connection) -> None:
    """Answer requests of the driver until it says `stop`: `warm`, `step`, `memory`; an error comes back as text."""
    baseline = memory(cell.device)
    step = None
    while (request := connection.recv()) != "stop":
        try:
            if request == "warm":
                count = flops(build(cell))
                step = build(cell, *([torch.compile] if "compiled" in cell.implementation else []))
                if cell.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                connection.send((count, timed(step, cell.device)))
            elif request == "step":
                connection.send(timed(step, cell.device))
            else:
                connection.send(memory(cell.device) - baseline)
        except RuntimeError as error:  # out of memory, too
            connection.send(str(error).splitlines()[0])


def largest_batch(cell: Cell, limit: int = 512) -> int:
    """The largest power of two of pairs that fits a GPU's memory, 0 for none."""
    fits = 0
    for batch in (2**power for power in range(limit.bit_length())):
        try:
            build(Cell(**{**asdict(cell), "batch": batch}))()
        except torch.OutOfMemoryError:
            return fits
        finally:
            torch.cuda.empty_cache()
        fits = batch
    return fits
