"""The best weights of a training, to use."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from custom.support.files import json_text, write_whole
from custom.training.step_guard import check_weights
from custom.weights.settings import carrying

logger = logging.getLogger(__name__)


class BestWeights:
    """Write `model.pt` whenever the key metric improves; a handler of the trainer whose state is the best so far.

    `model.pt` holds the network's weights alone, flat, as `monai.bundle.load` reads them; `settings.json` beside it
    tells people how they were trained. Weights that are not finite are not written. If no validation ever gave a finite
    key metric, it holds the final weights, and a warning says so.

    Args:
        save_dir: the bundle's `models` folder.
        network: its weights, without a distributed wrapper.
        evaluator: its key metric decides what is best; higher is better.
        carried: what goes with the weights (`custom.weights.settings.carrying`): `seen`, `settings`.

    Raises:
        NumbersError: weights that are not finite.
    """

    def __init__(
        self,
        save_dir: str | Path,
        network: nn.Module,
        evaluator: Engine,
        carried: Mapping[str, Any] | None = None,
    ) -> None:
        self.save_dir = Path(save_dir)
        self.network = network
        self.evaluator = evaluator
        self.carried = dict(carried or {})
        self.best = -math.inf

    def attach(self, engine: Engine) -> None:
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.save_if_better)
        engine.add_event_handler(Events.COMPLETED, self.ensure)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.evaluator.state.best_metric_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best = state["best"]
        self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch = state["best"], state["epoch"]

    def save_if_better(self, evaluator: Engine) -> None:
        value = evaluator.state.metrics[evaluator.state.key_metric_name]
        if math.isfinite(value) and value > self.best:
            self.best = value
            self.write()

    def ensure(self, trainer: Engine) -> None:
        if self.best == -math.inf:
            logger.warning(
                "no validation gave a finite %s; model.pt holds the last weights", self.evaluator.state.key_metric_name
            )
            self.write()

    def write(self) -> None:
        """The network's weights as they are, and the settings that go with them."""
        check_weights(self.network)
        write_checkpoint(self.save_dir / "model.pt", carrying(self.network.state_dict(), **self.carried))
        if (settings := self.carried.get("settings")) and idist.get_rank() == 0:
            write_whole(self.save_dir / "settings.json", json_text(dict(settings)))


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """`torch.save` on rank 0, without the file's name in the content; the file of that name is always whole."""

    def save(partial: Path) -> None:
        with partial.open("wb") as file:
            torch.save(content, file)

    if idist.get_rank() == 0:
        write_whole(path, save)
