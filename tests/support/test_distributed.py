"""Two processes with half the batch each train as one process with the whole batch."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from custom.losses import PretextLoss
from custom.networks.classifier import SASwinClassifier
from custom.networks.pretrainer import SASwinPretrainer
from custom.support.distributed import GlobalBatchLoss, gather_batch, own_rows
from custom.transforms.views import PrepareViews

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
SIZE = {"feature_size": 12, "window_size": 4, "depths": (1, 1, 1, 1)}


def views(step):
    """Two views of each of four pairs, view one first, and their targets."""
    generator = torch.Generator().manual_seed(step)
    pairs = torch.randn(8, 2, 64, 32, 32, generator=generator, dtype=torch.float64)
    healthy = torch.tensor([True, False, False, True] * 2)
    return pairs, {"image": pairs[:, :1], "rotation": torch.arange(8) % 4, "healthy": healthy}


def pretraining():
    return SASwinPretrainer(embedding_size=16, **SIZE), PretextLoss(weights={"symmetry": 10.0}), views, 4


def classification():
    loss = GlobalBatchLoss(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0])))
    return SASwinClassifier(**SIZE), loss, lambda step: (views(step)[0][:4], torch.tensor([0, 1, 1, 1])), 4


def share(batch, rank, world, pairs):
    """What a distributed sampler gives a rank: every `world`-th pair, in all views of it."""
    if isinstance(batch, dict):
        return {name: share(values, rank, world, pairs) for name, values in batch.items()}
    return batch[[i for i in range(len(batch)) if i % pairs % world == rank]]


def curve(task, rank=0, world=1):
    """Losses, averaged over the processes, and final weights of a few steps."""
    torch.manual_seed(0)
    network, loss_function, batches, pairs = task()
    network.double(), loss_function.double()  # batch norm of four rows blows rounding errors up
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # every process draws its own
    model = network if world == 1 else DistributedDataParallel(network, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for step in range(STEPS):
        inputs, target = (share(part, rank, world, pairs) for part in batches(step))
        loss = loss_function(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses), network.state_dict()


def one_rank(rank, world, folder, task):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    torch.save(curve(task, rank, world), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("task", [pytest.param(pretraining, marks=pytest.mark.slow), classification])
def test_two_processes_follow_the_curve_of_one_with_the_whole_batch(tmp_path, task):
    losses, weights = curve(task)
    mp.start_processes(one_rank, (2, str(tmp_path), task), nprocs=2, start_method="fork")
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    torch.testing.assert_close(torch.stack([part[0] for part in parts]).mean(0), losses, rtol=1e-5, atol=1e-6)
    assert abs(losses[0] - losses[-1]) > 0.05  # it is a curve
    for _, found in parts:
        for name, values in weights.items():
            torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-5)


def two_views(num_samples, repeat=False):
    """Input and targets of pretraining's views of eight pairs, each of values of its own; of a process its share."""
    pairs = torch.arange(8.0).view(8, 1, 1, 1, 1) + torch.rand(
        8, 2, 8, 16, 16, generator=torch.Generator().manual_seed(0)
    )
    batch = {"image": own_rows(pairs, num_samples), "healthy": own_rows(torch.arange(8) % 3 == 0, num_samples)}
    prepare = PrepareViews(num_samples=num_samples, roi_size=(8, 8, 8), seed=3, repeat=repeat)
    return prepare(batch, torch.device("cpu"))


def views_of_a_rank(rank, world, folder, num_samples):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    torch.save([two_views(num_samples), two_views(num_samples, repeat=True)], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("num_samples", [1, 2])
def test_two_processes_draw_the_views_of_the_whole_batch_and_keep_their_own(tmp_path, num_samples):
    inputs, targets = two_views(num_samples)
    mp.start_processes(views_of_a_rank, (2, str(tmp_path), num_samples), nprocs=2, start_method="fork")
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for rank, ((found, own_targets), _) in enumerate(parts):
        own = [row for row in range(16) if row // num_samples % 2 == rank]
        assert torch.equal(found, inputs[own])
        assert own_targets.keys() == targets.keys()
        for name, values in targets.items():
            assert torch.equal(own_targets[name], values[own])
    assert not torch.equal(parts[0][0][0], parts[0][1][0])  # where views are repeated, each draws for itself


def test_alone_and_without_gradients_nothing_is_gathered():
    rows = torch.randn(3, 2)
    assert gather_batch(rows) is rows


def bundle_run(task, root, output, launcher, *layers, **further):
    """What a small run of a bundle logs; no SACA, whose dropout differs."""
    bundle = ROOT / "bundles" / f"sa_swin_{task}"
    files = [str(bundle / "configs" / f"{name}.yaml") for name in ("train", *layers)]
    options = {"feature_size": 12, "window_size": 4, "spacing": 6.0, "spatial_size": [32, 64, 64], "symmetry": "none"}
    options |= {"align": False, "num_workers": 0, "warmup_epochs": 0, "max_epochs": 3}
    options |= {"dataset_dir": root, "bundle_root": bundle, "output_dir": output, "ckpt_dir": output, **further}
    options |= {"roi_size": [32, 64, 64]} if task != "classify" else {}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *launcher, "-m", "monai.bundle", "run", "--config_file", str(files), *words],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def bundle_curve(task, root, output, launcher, batch_size, *layers):
    """Mean losses of a bundle's three epochs, as it logs them, and its last weights."""
    told = bundle_run(task, root, output, launcher, *layers, batch_size=batch_size)
    losses = [float(value) for value in re.findall(r"Metrics -- .*train_loss: ([0-9.]+) ", told, re.MULTILINE)]
    return losses, torch.load(output / "last.ckpt", weights_only=False)["network"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pretrain", "classify", "segment"])
def test_a_bundle_under_torchrun_follows_the_curve_of_one_process(task, tiny_cohort, tmp_path):
    losses, weights = bundle_curve(task, tiny_cohort, tmp_path / "one", (), 2)
    found, others = bundle_curve(task, tiny_cohort, tmp_path / "two", TORCHRUN, 1, "multi_gpu_train")
    assert len(losses) == 3
    assert found == pytest.approx(losses, rel=2e-3)
    for name, values in weights.items():
        torch.testing.assert_close(
            others[name], values, rtol=0, atol=2e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pretrain", "classify", "segment"])
def test_two_processes_measure_what_one_does(task, tiny_cohort, tmp_path):
    bundle_run(task, tiny_cohort, tmp_path / "one", (), batch_size=2, max_epochs=1)
    checkpoint = tmp_path / "one" / "model.pt"
    found = []
    for name, launcher, layers in (("one", (), ()), ("two", TORCHRUN, ("multi_gpu_evaluate",))):
        bundle_run(task, tiny_cohort, tmp_path / name, launcher, "evaluate", *layers, checkpoint=checkpoint)
        with (tmp_path / name / "cases.csv").open() as file:
            found.append(list(csv.DictReader(file)))
    assert len(found[0]) == len(found[1]) > 0
    for one, other in zip(*found, strict=True):
        assert (one["image"], one.keys()) == (other["image"], other.keys())
        figures = [name for name in one if re.fullmatch("(probability|dice|volume_ml|asymmetry).*", name) and one[name]]
        assert figures
        for name in figures:
            assert float(other[name]) == pytest.approx(float(one[name]), rel=1e-4, abs=1e-5)
