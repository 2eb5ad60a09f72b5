"""Ignite handlers that MONAI lacks: parts of the loss, early stopping that can resume."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from torch import Tensor, nn

logger = logging.getLogger(__name__)


class LossParts:
    """Epoch means of a training's loss, and of its parts where the loss has them, in `engine.state.metrics`.

    Attach it as the trainer's key metric, under the name `train_loss`. The values are left on the GPU until the epoch
    ends, or a checkpoint is written: no step waits for them.

    Args:
        loss_function: a loss that keeps its latest values in `parts` (`custom.losses.PretextLoss`); any other is taken
            whole.
    """

    def __init__(self, loss_function: nn.Module) -> None:
        self.loss_function = loss_function
        self.values: list[dict[str, float]] = []
        self.newest: list[Tensor] = []
        self.names: list[str] = []

    def attach(self, engine: Engine, name: str = "train_loss") -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish)

    def state_dict(self) -> dict[str, list[list[dict[str, float]]]]:
        """The values of the epoch so far, of every process: to be asked by all together."""
        return {"values": idist.all_gather(self.fetched())}

    def load_state_dict(self, state: Mapping[str, list[list[dict[str, float]]]]) -> None:
        self.values[:] = state["values"][idist.get_rank()]

    def start(self, engine: Engine) -> None:
        if engine.state.iteration % engine.state.epoch_length == 0:  # not where a resumed epoch goes on
            self.values.clear()

    def collect(self, engine: Engine) -> None:
        output = engine.state.output
        whole = torch.as_tensor(output[0]["loss"] if isinstance(output, list) else output["loss"])
        parts = getattr(self.loss_function, "parts", {"loss": whole})
        self.names = list(parts)
        self.newest.append(torch.stack([value.detach() for value in parts.values()]))

    def fetched(self) -> list[dict[str, float]]:
        """The values of all steps of the epoch so far, the newest brought from the GPU at once."""
        rows = torch.stack(self.newest).tolist() if self.newest else []
        self.values += [dict(zip(self.names, row, strict=True)) for row in rows]
        self.newest.clear()
        return self.values

    def finish(self, engine: Engine) -> None:
        steps = self.fetched()
        for name in steps[0]:
            values = [step[name] for step in steps if math.isfinite(step[name])]  # without skipped steps
            total, number = (idist.all_reduce(value) for value in (sum(values, 0.0), float(len(values))))
            engine.state.metrics[f"train_{name}"] = total / number if number else math.nan


class StopEarly:
    """Ignite's `EarlyStopping` on the evaluator's key metric, attached from the trainer's side.

    In a config the evaluator exists before the trainer, so a handler of the evaluator cannot name the trainer to stop.
    A metric that is not finite is no progress. A training that had stopped stays so when it is resumed, unless
    `patience` is raised.

    Args:
        evaluator: whose key metric (higher is better) must make progress.
        patience: validations without progress before training stops.
    """

    def __init__(self, evaluator: Engine, patience: int) -> None:
        self.evaluator = evaluator
        self.patience = patience
        self.stopping: EarlyStopping | None = None

    def attach(self, engine: Engine) -> None:
        self.stopping = EarlyStopping(self.patience, self.score, engine)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.stopping)

    def score(self, evaluator: Engine) -> float:
        value = evaluator.state.metrics[evaluator.state.key_metric_name]
        return value if math.isfinite(value) else -math.inf

    def state_dict(self) -> dict[str, Any]:
        return dict(self.stopping.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stopping.load_state_dict(state)
        if self.stopping.counter >= self.patience:
            self.stopping.trainer.terminate()
