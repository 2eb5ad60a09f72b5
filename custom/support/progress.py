"""How far something is: a bar on a terminal; elsewhere, as in a log file, a line now and then."""

import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from tqdm import tqdm

SECONDS = 60.0
"""Between two lines."""

Result = TypeVar("Result")


def followed(results: Iterable[Result], total: int, what: str) -> Iterator[Result]:
    """Results as they come, with a bar on a terminal, else with a line on stderr at the first and now and then.

    Args:
        results: one per case.
        total: number of cases.
        what: is done with them.
    """
    if sys.stderr.isatty():
        yield from tqdm(results, what, total, unit="case")
        return
    told = -math.inf
    for number, result in enumerate(results, 1):
        now = time.monotonic()
        if now - told >= SECONDS or number == total:
            told = now
            _tell(f"{what}: {number} of {total} cases")
        yield result


class Progress:
    """Ignite's `ProgressBar` on a terminal; elsewhere a line on stderr now and then.

    Args:
        desc: what is done.
        total: steps of an epoch, where the engine cannot know them.
    """

    def __init__(self, desc: str, total: int | None = None) -> None:
        self.desc = desc
        self.total = total
        self.told = -math.inf

    def attach(self, engine: Engine) -> None:
        if sys.stderr.isatty():
            of_total = f"{{desc}}[{{n_fmt}}/{self.total}] [{{elapsed}}, {{rate_fmt}}]"
            known = {} if self.total is None else {"bar_format": of_total}
            ProgressBar(desc=self.desc, **known).attach(engine)
            return
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.tell)

    def start(self, engine: Engine) -> None:
        self.told = time.monotonic()

    def tell(self, engine: Engine) -> None:
        now, state = time.monotonic(), engine.state
        if now - self.told < SECONDS:
            return
        self.told = now
        length = state.epoch_length or self.total
        step = state.iteration if state.epoch_length is None else (state.iteration - 1) % state.epoch_length + 1
        epoch = f"epoch {state.epoch} of {state.max_epochs}, " if (state.max_epochs or 1) > 1 else ""
        _tell(f"{self.desc}: {epoch}{step} of {'?' if length is None else length}")


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
