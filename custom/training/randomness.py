"""Randomness of a training as a function of its seed and of where it stands: sample by sample, step by step.

No generator's state outlives a step. So a training that goes on from a checkpoint, also inside an epoch, draws what it
would have drawn without the stop, with any number of data-loader workers.
"""

import random
from collections.abc import Iterator, Sequence, Sized
from typing import Any, Protocol

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.transforms import Randomizable
from torch.utils.data import Dataset, DistributedSampler

from custom.data.dataset import loader_context
from custom.training.preemption import shield_worker

_SAMPLES, _STEPS = 0, 1  # streams that must not meet

Draw = tuple[int, int]
"""Epoch, and index of a sample."""


class Seedable(Protocol):
    """Something with a generator of its own, as MONAI's random transforms have."""

    def set_random_state(self, seed: int) -> object: ...


def derived_seed(*numbers: int) -> int:
    """One seed, 0 to 2^32 - 1, for several numbers that are not negative."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Start the generators of Python, numpy and torch, on all devices, from a seed."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  other libraries' transforms draw from it
    torch.manual_seed(seed)


class SampleOrder(DistributedSampler):
    """Which samples come when: shuffled by seed and epoch alone; in several processes, each one's share.

    It yields a `Draw`, which is what `SeededSamples` takes.

    Args:
        dataset: to draw from.
        batch_size: of the data loader.
        seed: of the order.
    """

    def __init__(self, dataset: Sized, batch_size: int, seed: int = 0) -> None:
        super().__init__(dataset, idist.get_world_size(), idist.get_rank(), shuffle=True, seed=derived_seed(seed))
        self.batch_size = batch_size
        self.first = 0

    def skip(self, batches: int) -> None:
        """Leave out the first batches of the next epoch that is drawn, and of that one only."""
        self.first = batches * self.batch_size

    def __iter__(self) -> Iterator[Draw]:
        order, self.first = list(super().__iter__())[self.first :], 0
        return iter([(self.epoch, index) for index in order])


class SeededSamples(Dataset):
    """A dataset whose random transforms start, for every sample, from a seed of the epoch and the sample.

    Args:
        dataset: a MONAI dataset; random is what its `transform` draws.
        seed: of the training.
    """

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        seed = derived_seed(self.seed, _SAMPLES, *draw)
        seed_all(seed)
        if isinstance(transform := getattr(self.dataset, "transform", None), Randomizable):
            transform.set_random_state(seed)
        return self.dataset[draw[1]]


class ReproducibleLoader(DataLoader):
    """A training's data loader: which samples come, and what their transforms draw, follow from the seed alone.

    Args:
        dataset: a MONAI dataset.
        batch_size: of each process.
        seed: of the training.
        num_workers: processes that load; they outlive a SIGTERM to all processes of a job.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__(
            SeededSamples(dataset, seed),
            num_workers,
            sampler=SampleOrder(dataset, batch_size, seed),
            batch_size=batch_size,
            worker_init_fn=shield_worker,
            multiprocessing_context=loader_context(num_workers),
            pin_memory=torch.cuda.is_available(),  # a GPU does not wait for the host's copy
        )


class SeedSteps:
    """Ignite handler of a trainer: start every generator anew before each step, from seed, process and iteration.

    Args:
        seed: of the training.
        others: what has a generator of its own, the same in all processes.
    """

    def __init__(self, seed: int = 0, others: Sequence[Seedable] = ()) -> None:
        self.seed = seed
        self.others = others

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        iteration = engine.state.iteration
        seed_all(derived_seed(self.seed, _STEPS, idist.get_rank(), iteration))
        for other in self.others:
            other.set_random_state(derived_seed(self.seed, _STEPS, 0, iteration))
