"""SIGTERM, which a scheduler sends before it takes a machine away: the training ends in order, and can be put back."""

import logging
import signal
import sys
import threading
from types import FrameType

import ignite.distributed as idist
from ignite.engine import Engine, Events

REQUEUE = 75
"""Exit code of a training that was asked to leave: EX_TEMPFAIL of sysexits.h, try again later."""

logger = logging.getLogger(__name__)


class Preemption:
    """Whether SIGTERM has come since the training started; `custom.training.Checkpoints` acts on it.

    Outside of a training SIGTERM ends the process as ever: there is nothing to save. It is listened to in the main
    thread only, where Python lets signals be handled.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: object = None

    def attach(self, engine: Engine) -> None:
        engine.state.preemption = self
        engine.add_event_handler(Events.STARTED, self.listen)
        engine.add_event_handler(Events.COMPLETED, self.ignore)

    def listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._request)

    def ignore(self) -> None:
        """The training is complete: from here on SIGTERM does again what it did."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def agreed(self) -> bool:
        """Whether any process was asked to leave: the same answer in all of them, which must ask together."""
        self.requested = bool(idist.all_reduce(int(self.requested), "MAX"))
        return self.requested


def leave(trainer: Engine) -> None:
    """End the process with `REQUEUE` if its training was asked to leave; the bundles' `run` ends with it."""
    if trainer.state.preemption.requested:
        idist.barrier()  # until the first process has written
        logger.warning("stopped by SIGTERM, with exit code %d; --resume True goes on", REQUEUE)
        sys.exit(REQUEUE)


def shield_worker(worker: int) -> None:
    """Let a data-loader worker outlive a SIGTERM to all processes of a job: the step that it serves is finished first.

    Args:
        worker: its number; `worker_init_fn` of a data loader.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
