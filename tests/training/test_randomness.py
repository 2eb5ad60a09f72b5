import random

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, RandGaussianNoised
from small_training import same, samples

from custom.training.preemption import shield_worker
from custom.training.randomness import SampleOrder, SeededSamples, SeedSteps


def test_an_epoch_has_every_sample_once_in_an_order_of_its_own():
    order = SampleOrder(range(10), batch_size=2, seed=5)
    epochs = []
    for epoch in (1, 2):
        order.set_epoch(epoch)
        epochs.append(list(order))
        assert sorted(epochs[-1]) == [(epoch, i) for i in range(10)]
    assert [i for _, i in epochs[0]] != [i for _, i in epochs[1]]
    order.skip(2)
    assert list(order) == epochs[1][4:]
    assert list(order) == epochs[1]
    other = SampleOrder(range(10), batch_size=2, seed=6)
    other.set_epoch(2)
    assert list(other) != epochs[1]


def test_processes_share_the_samples_of_an_epoch(monkeypatch):
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        shares.append([index for _, index in SampleOrder(range(8), batch_size=1)])
    assert sorted(shares[0] + shares[1]) == list(range(8))


def batches(workers, epoch=1, skip=0):
    data = Dataset(samples(6), Compose([RandGaussianNoised("image", prob=1.0)]))
    order = SampleOrder(data, batch_size=2)
    order.set_epoch(epoch)
    order.skip(skip)
    loader = DataLoader(
        SeededSamples(data), sampler=order, batch_size=2, num_workers=workers, worker_init_fn=shield_worker
    )
    return [batch["image"].as_tensor() for batch in loader]


def test_samples_are_the_same_whatever_loads_them_and_wherever_an_epoch_goes_on():
    alone, helped = batches(0), batches(2)
    assert same(alone, helped)
    assert same(batches(0, skip=2), alone[2:])
    assert same(batches(2, skip=1), alone[1:])
    assert not same(batches(0, epoch=2), alone)


class Drawer:
    """What remembers the seed it was given."""

    seed = 0

    def set_random_state(self, seed):
        self.seed = seed


def test_processes_draw_differently_in_a_step_save_what_they_draw_together(monkeypatch):
    drawn, together = [], []
    for rank in (0, 1):
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        engine = type("Engine", (), {"state": type("State", (), {"iteration": 4})})
        drawer = Drawer()
        SeedSteps(0, [drawer])(engine)
        together.append(drawer.seed)
        drawn.append((torch.rand(3).tolist(), np.random.rand(), random.random()))  # noqa: NPY002
    assert not set(drawn[0][0]) & set(drawn[1][0])
    assert drawn[0][1:] != drawn[1][1:]
    assert len(set(together)) == 1
