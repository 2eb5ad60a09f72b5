"""A training of a few milliseconds with all that the bundles' configs put together, to be stopped and resumed."""

import os
import signal

import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import Compose, RandGaussianNoised, RandScaleIntensityd
from torch import nn

from custom.training.best_weights import BestWeights
from custom.training.checkpoints import Checkpoints, find_last
from custom.training.progress import LossParts, StopEarly
from custom.training.randomness import ReproducibleLoader
from custom.training.replay import TrainingStep
from custom.training.step_guard import StepGuard

CPU = torch.device("cpu")
EPOCHS, STEPS = 3, 3
EVENTS = [e for e in (*Events, *IterationEvents) if e is not Events.EXCEPTION_RAISED]


class Score:
    """Key metric of the validation: minus the mean output, so that it depends on the weights."""

    def attach(self, engine, name=None):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.note)

    def note(self, engine):
        engine.state.metrics["auc"] = -engine.state.output[0]["pred"].mean().item()


def samples(count):
    generator = torch.Generator().manual_seed(7)
    return [
        {
            "image": MetaTensor(torch.randn(4, 3, generator=generator), meta={"filename_or_obj": f"/data/{i}.nii.gz"}),
            "label": torch.randn(4, 2, generator=generator),
            "subject": f"sub-{i}",
        }
        for i in range(count)
    ]


class LossScale:
    """What mixed precision does on a GPU, but for the half precision itself."""

    def __init__(self, scale):
        self.scale = scale

    def attach(self, engine):
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine):
        engine.amp = True
        engine.scaler = torch.amp.GradScaler("cpu", init_scale=self.scale, growth_interval=2)


class Training:
    """All that the bundles' configs put together, on a network of two layers with batch norm and dropout."""

    def __init__(self, folder, resume="auto", max_epochs=EPOCHS, patience=50, batch_size=2, scale=None, **guard):
        torch.manual_seed(3)
        self.network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(5, 2))
        noise = Compose([RandGaussianNoised("image", prob=0.7), RandScaleIntensityd("image", 0.5, prob=0.5)])
        data = Dataset(samples(6), noise)
        loader = ReproducibleLoader(data, batch_size)
        held_out = DataLoader(Dataset(samples(2)), batch_size=1)
        self.evaluator = SupervisedEvaluator(CPU, held_out, self.network, key_val_metric={"auc": Score()})
        optimizer = torch.optim.AdamW(self.network.parameters(), 0.05, fused=True)
        schedule = WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=max_epochs * STEPS)
        self.loss = nn.MSELoss()
        means = LossParts(self.loss)
        handlers = [
            *([LossScale(scale)] if scale else []),
            LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
            ValidationHandler(1, self.evaluator),
            Checkpoints(
                folder,
                self.network,
                self.evaluator,
                {"optimizer": optimizer, "lr_scheduler": schedule, "train_loss": means},
                {
                    "step_guard": StepGuard(self.network, **guard),
                    "stop_early": StopEarly(self.evaluator, patience),
                    "best_weights": BestWeights(folder, self.network, self.evaluator),
                },
                find_last(folder, resume),
            ),
        ]
        self.step = TrainingStep()
        self.trainer = SupervisedTrainer(
            CPU,
            max_epochs,
            loader,
            self.network,
            optimizer,
            self.loss,
            key_train_metric={"train_loss": means},
            metric_cmp_fn=lambda loss, best: loss < best,
            train_handlers=handlers,
            iteration_update=self.step,
            decollate=False,
        )
        self.preemption = self.trainer.state.preemption

    def run(self, at=0, fault=None):
        """Run; at the event with this number, of trainer or evaluator, do something. Returns how many there were."""
        count = 0

        def tick(*_):
            nonlocal count
            count += 1
            if count == at:
                fault()

        for engine in (self.trainer, self.evaluator):
            for event in EVENTS:
                engine.add_event_handler(event, tick)
        self.trainer.run()
        return count

    def ask_to_leave(self):
        self.asked_in = self.trainer.state.iteration
        os.kill(os.getpid(), signal.SIGTERM)


def content(folder):
    """All that the checkpoints hold."""
    return [torch.load(folder / name, weights_only=True) for name in ("last.ckpt", "model.pt")]


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
