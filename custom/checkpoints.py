"""Checkpoints of a training: the last state to go on from, and the best weights to use."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import nn

from custom.files import write_whole
from custom.provenance import Record, with_records
from custom.weights import WeightsError, read_checkpoint

logger = logging.getLogger(__name__)


class Checkpoints:
    """Write `last.pt` after every epoch and `model.pt` whenever the key metric improves; resume from the former.

    `last.pt` holds the network, the further objects, and the progress of trainer and evaluator; `model.pt` the
    network's weights alone, flat, as `monai.bundle.load` reads them. Each is written under a temporary name first. If
    no validation ever gave a finite key metric, `model.pt` holds the final weights, and a warning says so. Attach it
    behind the validation handler.

    Args:
        save_dir: the bundle's `models` folder.
        network: its weights, without a distributed wrapper.
        evaluator: its key metric decides what is best; higher is better.
        objects: further things with a state: optimiser, schedule.
        resume: go on from `last.pt`.
        seen: what the weights have seen (`custom.provenance.record_training`), to be saved with them.
        settings: of this training; written as `settings.json` beside the weights, for whoever releases them.

    Raises:
        WeightsError: at the start, when there is nothing to resume from, it does not fit, or it has no epoch left to
            train.
    """

    def __init__(
        self,
        save_dir: str | Path,
        network: nn.Module,
        evaluator: Engine,
        objects: Mapping[str, Any],
        resume: bool = False,
        seen: Sequence[Record] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.save_dir = Path(save_dir)
        self.network = network
        self.evaluator = evaluator
        self.objects = dict(objects)
        self.resume = resume
        self.seen = list(seen)
        self.settings = settings
        self.best = -math.inf

    def attach(self, engine: Engine) -> None:
        if self.resume:
            engine.add_event_handler(Events.STARTED, self.load_last)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save_last)
        engine.add_event_handler(Events.COMPLETED, self.ensure_best)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.save_best)

    def load_last(self, trainer: Engine) -> None:
        path = self.save_dir / "last.pt"
        if not path.is_file():
            raise WeightsError(f"nothing to resume from: no {path}; train without --resume first")
        state = read_checkpoint(path)
        try:
            self.network.load_state_dict(state["network"])
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise WeightsError(
                f"{path} does not fit the network; resume with the sizes it was trained with: {reason}"
            ) from error
        for name, item in self.objects.items():
            horizon = {key: vars(item)[key] for key in ("warmup_steps", "t_total") if key in vars(item)}
            item.load_state_dict(state[name] | horizon)  # a schedule goes on towards the max_epochs of this run
        wanted = trainer.state.max_epochs
        trainer.load_state_dict(state["trainer"])
        if wanted is not None and trainer.state.epoch >= wanted:
            raise WeightsError(
                f"{path} has {trainer.state.epoch} epochs already; to go on, raise --max_epochs above {wanted}"
            )
        trainer.state.max_epochs = wanted
        self.best = state["best"]
        self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch = state["best"], state["best_epoch"]
        logger.info("resumed from %s after epoch %d", path, trainer.state.epoch)

    def save_last(self, trainer: Engine) -> None:
        state = {
            "network": self.network.state_dict(),
            **{name: item.state_dict() for name, item in self.objects.items()},
            "trainer": trainer.state_dict(),
            "best": self.best,
            "best_epoch": self.evaluator.state.best_metric_epoch,
            "seen": self.seen,
        }
        self.write("last.pt", state)

    def save_best(self, evaluator: Engine) -> None:
        value = evaluator.state.metrics[evaluator.state.key_metric_name]
        if math.isfinite(value) and value > self.best:
            self.best = value
            self.write_best()

    def ensure_best(self, trainer: Engine) -> None:
        if self.best == -math.inf:
            logger.warning(
                "no validation gave a finite %s; model.pt holds the last weights", self.evaluator.state.key_metric_name
            )
            self.write_best()

    def write_best(self) -> None:
        """The network's weights as they are, and the settings that go with them."""
        self.write("model.pt", with_records(self.network.state_dict(), self.seen))
        if self.settings is not None:
            self.write("settings.json", self.settings)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write on rank 0; the file of that name is always whole."""
        if dist.is_initialized() and dist.get_rank() > 0:
            return
        if name.endswith(".json"):
            write_whole(self.save_dir / name, json.dumps(dict(content), indent=2) + "\n")
        else:
            write_whole(self.save_dir / name, lambda path: save_to(path, content))


def save_to(path: Path, content: Mapping[str, Any]) -> None:
    """`torch.save` without the file's name in the content."""
    with path.open("wb") as file:
        torch.save(content, file)
