"""Faults for the trainings of `bundle_runs`: put into a workflow before it runs, in the process that it befalls."""

import io
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path


@dataclass
class SignalAt:
    """Send this process a signal at an event of trainer or evaluator, counted from 1, or some seconds after it."""

    event: int
    number: int = signal.SIGKILL
    delay: float = 0.0

    def __call__(self, bundle):
        from ignite.engine import Events
        from monai.engines.utils import IterationEvents

        for name in ("train::trainer", "validate::evaluator"):
            engine = bundle.parser.get_parsed_content(name)
            for event in (*Events, *IterationEvents):
                if event is not Events.EXCEPTION_RAISED:
                    engine.add_event_handler(event, self.tick)

    def tick(self, *_):
        self.event -= 1
        if self.event == 0 and self.delay:
            threading.Timer(self.delay, os.kill, (os.getpid(), self.number)).start()
        elif self.event == 0:
            os.kill(os.getpid(), self.number)


@dataclass
class KillInSave:
    """Kill this process when it has written a share of a checkpoint, the n-th, counted from 1."""

    count: int
    share: float

    def __call__(self, bundle):
        import torch

        self.save = torch.save
        torch.save = self.half

    def half(self, content, file):
        self.count -= 1
        if self.count:
            return self.save(content, file)
        whole = io.BytesIO()
        self.save(content, whole)
        file.write(whole.getvalue()[: int(self.share * len(whole.getvalue()))])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class KillAtRename:
    """Kill this process before the n-th renaming of a file in `models`, counted from 1, or after it."""

    count: int
    after: bool

    def __call__(self, bundle):
        self.replace = os.replace
        os.replace = self.counted

    def counted(self, source, target):
        self.count -= "models" in str(target)
        if self.count == 0 and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        self.replace(source, target)
        if self.count == 0:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class SpoilImages:
    """Make the images of some iterations NaN, in this process only."""

    iterations: tuple

    def __call__(self, bundle):
        from ignite.engine import Events

        trainer = bundle.parser.get_parsed_content("train::trainer")
        trainer.add_event_handler(Events.ITERATION_STARTED, self.spoil)

    def spoil(self, engine):
        if engine.state.iteration in self.iterations:
            engine.state.batch["image"] *= float("nan")


@dataclass
class KillWorker:
    """Kill a data-loader worker while it loads a sample of an epoch."""

    epoch: int

    def __call__(self, bundle):
        from custom.training.randomness import SeededSamples

        self.load = SeededSamples.__getitem__
        SeededSamples.__getitem__ = lambda samples, draw: self.in_worker(samples, draw)

    def in_worker(self, samples, draw):
        from torch.utils.data import get_worker_info

        if draw[0] == self.epoch and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.load(samples, draw)


@dataclass
class SignalGroup:
    """SIGTERM to this process and all that it has started, as a scheduler sends it to all processes of a job."""

    event: int

    def __call__(self, bundle):
        os.setpgid(0, 0)
        SignalAt.__call__(self, bundle)

    def tick(self, *_):
        self.event -= 1
        if self.event == 0:
            os.killpg(0, signal.SIGTERM)


@dataclass
class RecordMemory:
    """No fault: write the resident memory of this process, in bytes, after every epoch."""

    path: Path

    def __call__(self, bundle):
        from ignite.engine import Events

        trainer = bundle.parser.get_parsed_content("train::trainer")
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.record)

    def record(self):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        with self.path.open("a") as file:
            file.write(f"{pages * os.sysconf('SC_PAGE_SIZE')}\n")
