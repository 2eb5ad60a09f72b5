"""What stands between the backward pass and the optimiser's step: clipping, and no step that is not a number."""

import logging
import math

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from custom.evaluation.case_table import names_of
from custom.support.errors import NumbersError

logger = logging.getLogger(__name__)


class StepGuard:
    """Clip the norm of the gradients, and skip a step whose loss or gradients are NaN or infinite, a few times.

    A skipped step changes no weight and no running mean; the batch's cases are named. With several processes all skip
    together. With mixed precision, gradients that overflow while the loss is finite are the loss scale's own business,
    and not counted, until there is no scale left to lower.

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
        self.buffers: dict[str, Tensor] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self.remember)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped = state["skipped"]

    def remember(self) -> None:
        """What the forward pass changes: the running means of batch norm."""
        self.buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}

    def __call__(self, engine: Engine) -> None:
        scaler = engine.scaler if engine.amp else None
        if scaler is not None:
            scaler.unscale_(engine.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        overflow_of_scale = scaler is not None and scaler.get_scale() > 1
        fault = fault_of(engine.state.output["loss"], None if overflow_of_scale else norm)
        if idist.all_reduce(int(fault != ""), "MAX"):
            self.skip(engine, fault)

    def skip(self, engine: Engine, fault: str) -> None:
        for parameter in self.network.parameters():
            parameter.grad = None  # optimisers pass over it
        self.network.load_state_dict(self.buffers, strict=False)
        self.skipped += 1
        cases = ", ".join(faulty_cases(engine, fault))
        where = f"epoch {engine.state.epoch}, iteration {engine.state.iteration}: {cases}"
        if self.skipped > self.max_skipped:
            raise NumbersError(
                f"stopped at {where}; {self.max_skipped} such steps are allowed (max_skipped_steps). Look at these "
                "images and masks, or lower learning_rate; --resume True goes on from the last checkpoint, which is "
                "sound"
            )
        logger.warning("step %d of %d that may be skipped, %s", self.skipped, self.max_skipped, where)


def fault_of(loss: Tensor, norm: Tensor | None) -> str:
    """What is not finite, in words; empty where all is well.

    Args:
        loss: of the batch.
        norm: of its gradients; None where it does not count.
    """
    if not math.isfinite(loss.item()):
        return f"the loss is {loss.item()}"
    if norm is not None and not math.isfinite(norm.item()):
        return f"the gradients' norm is {norm.item()}"
    return ""


def faulty_cases(engine: Engine, fault: str) -> list[str]:
    """The fault and the cases of the batch, of every process that has one: to be asked by all processes together."""
    own = [f"{fault} in the batch of {names_of(engine.state.batch)}"] if fault else []
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
