"""What stands between the backward pass and the optimiser's step: clipping, and no step that is not a number."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from torch.optim import Optimizer

from custom.evaluation.case_table import names_of
from custom.support.errors import NumbersError

logger = logging.getLogger(__name__)


class StepGuard:
    """Clip the norm of the gradients, and skip a step whose loss or gradients are NaN or infinite, a few times.

    A skipped step changes no weight and no running mean; the batch's cases are named. With several processes all skip
    together. With mixed precision, gradients that overflow while the loss is finite are the loss scale's own business,
    and not counted, until there is no scale left to lower.

    A GPU skips by itself, as it does for a loss scale (`found_inf` of torch's fused optimisers; any other is waited
    for). The host learns of it a step later, so that it need not wait, and at the latest when the epoch ends or a
    checkpoint is written.

    Args:
        network: whose gradients to clip.
        max_norm: largest norm, over all parameters together.
        max_skipped: steps of the whole training that may be skipped.

    Raises:
        NumbersError: at the first such step beyond, with the cases.
    """

    def __init__(self, network: nn.Module, max_norm: float = 1.0, max_skipped: int = 3) -> None:
        self.network = network
        self.max_norm = max_norm
        self.max_skipped = max_skipped
        self.skipped = 0
        self.buffers: list[Tensor] = []
        self.unread: StepFigures | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self.remember)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.read)

    def state_dict(self) -> dict[str, int]:
        self.read()
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped = state["skipped"]

    def remember(self) -> None:
        """What the forward pass changes: the running means of batch norm."""
        self.buffers = [buffer.clone() for buffer in self.network.buffers()]

    def __call__(self, engine: Engine) -> None:
        scaler = engine.scaler if engine.amp else None
        if scaler is not None:
            scaler.unscale_(engine.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        loss = engine.state.output["loss"].detach()
        if scaler is not None:  # an overflow, unless there is no scale left to lower
            norm = torch.where(scaler.scale(torch.ones_like(norm)) > 1, torch.zeros_like(norm), norm)
        faulty = idist.all_reduce((~(loss.isfinite() & norm.isfinite())).float(), "MAX")
        self.skip(engine.optimizer, faulty, scaled=scaler is not None)
        before, self.unread = self.unread, StepFigures(torch.stack([faulty, loss.float(), norm.float()]), engine)
        self.tell(before)
        if loss.device.type == "cpu":
            self.read()

    def skip(self, optimizer: Optimizer, faulty: Tensor, scaled: bool) -> None:
        """Let the coming step change nothing where `faulty` is 1; the loss scale's own skipping does for gradients."""
        for buffer, before in zip(self.network.buffers(), self.buffers, strict=True):
            buffer.copy_(torch.where(faulty > 0, before, buffer))
        if not scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = faulty
        elif faulty.item():
            for parameter in self.network.parameters():
                parameter.grad = None  # optimisers pass over it

    def read(self) -> None:
        """Learn what became of the last step."""
        before, self.unread = self.unread, None
        self.tell(before)

    def tell(self, finding: "StepFigures | None") -> None:
        """Count and name a step that was skipped, if it was; all processes must ask together."""
        if finding is None or not (figures := finding.figures())[0]:
            return
        self.skipped += 1
        cases = ", ".join(faulty_cases(finding.batch, fault_of(*figures[1:])))
        where = f"epoch {finding.epoch}, iteration {finding.iteration}: {cases}"
        if self.skipped > self.max_skipped:
            raise NumbersError(
                f"stopped at {where}; {self.max_skipped} such steps are allowed (max_skipped_steps). Look at these "
                "images and masks, or lower learning_rate; --resume True goes on from the last checkpoint, which is "
                "sound"
            )
        logger.warning("step %d of %d that may be skipped, %s", self.skipped, self.max_skipped, where)


class StepFigures:
    """What was found in a step, on its way to the host.

    Args:
        figures: whether it is faulty, its loss, and the norm of its gradients; `(3,)`.
        engine: at this step.
    """

    def __init__(self, figures: Tensor, engine: Engine) -> None:
        self.epoch, self.iteration, self.batch = engine.state.epoch, engine.state.iteration, engine.state.batch
        self.copy = figures.to("cpu", non_blocking=True)
        self.arrived = torch.cuda.Event() if figures.is_cuda else None
        if self.arrived is not None:
            self.arrived.record()

    def figures(self) -> list[float]:
        """The figures, once they have arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.copy.tolist()


def fault_of(loss: float, norm: float) -> str:
    """What is not finite, the loss of a batch or the norm of its gradients, in words; empty where all is well."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    return "" if math.isfinite(norm) else f"the gradients' norm is {norm}"


def faulty_cases(batch: Mapping[str, Any], fault: str) -> list[str]:
    """The fault and the cases of the batch, of every process that has one: to be asked by all processes together."""
    own = [f"{fault} in the batch of {names_of(batch)}"] if fault else []
    return [text for part in idist.all_gather(own) for text in part]


def check_weights(network: nn.Module) -> None:
    """Refuse weights that are not finite.

    Raises:
        NumbersError: with the first such tensor.
    """
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise NumbersError(
                f"the weights are not finite any more ({name}) and are not saved; lower learning_rate; "
                "--resume True goes on from the last checkpoint, which is sound"
            )
