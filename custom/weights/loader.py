"""Pretrained weights into a network, before a run."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ignite.engine import Engine, Events
from torch import nn

from custom.weights.settings import settings_in
from custom.weights.transfer import DENSE, PRETRAINED_PARTS, WeightsError, load_checkpoint, transfer

logger = logging.getLogger(__name__)


class PretrainedLoader:
    """Ignite handler: load weights before a run, and log what matched.

    Args:
        path: checkpoint of `load_checkpoint`.
        network: what receives the weights.
        parts, minimum, optional: as in `transfer`; with `parts=("",)` and `minimum=1.0` the checkpoint must fit the
            whole network.
    """

    def __init__(
        self,
        path: str | Path,
        network: nn.Module,
        parts: Sequence[str] = PRETRAINED_PARTS,
        minimum: float = 0.8,
        optional: Sequence[str] = DENSE,
    ) -> None:
        self.path = path
        self.network = network
        self.parts = parts
        self.minimum = minimum
        self.optional = optional

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        try:
            saw_map = bool((settings_in(self.path) or {}).get("asymmetry_map")) if self.minimum < 1 else None
            tensors = load_checkpoint(self.path)
            report = transfer(self.network, tensors, self.parts, self.minimum, self.optional, saw_map)
        except WeightsError as error:
            raise error if str(self.path) in str(error) else WeightsError(f"{self.path}: {error}") from error
        logger.info("weights from %s: %s", self.path, report)
