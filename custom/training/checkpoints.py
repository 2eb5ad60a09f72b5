"""Checkpoints of a training: the last states, to go on from exactly."""

import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import nn

from custom.data.case import Case
from custom.training.best_weights import write_checkpoint
from custom.training.preemption import Preemption
from custom.training.randomness import SampleOrder, Seedable, SeedSteps
from custom.training.step_guard import check_weights
from custom.training.tracking import cohort_digest
from custom.weights.pretrained import pretrained_file
from custom.weights.settings import CONTRACT, ENCODER, Weights
from custom.weights.transfer import WeightsError, read_checkpoint

logger = logging.getLogger(__name__)

# Not .pt: of those in models/, MONAI Label serves the one with the shortest name.
LAST, PREVIOUS, NEXT = "last.ckpt", "previous.ckpt", "next.ckpt"
"""States of a training: the newest, the one before, and one that is written whole but has not become the newest yet."""


def starting_weights(save_dir: str | Path, resume: bool | str = False, pretrained: str | Path = "") -> Weights:
    """The weights that a training starts from: those to go on from, else pretrained ones, else none.

    Of pretrained weights the training takes the input contract and the encoder's sizes, where they say what those were;
    of a checkpoint that it goes on from, all that its configuration asks for.

    Args:
        save_dir: the bundle's `models` folder.
        resume: as in `find_last`.
        pretrained: as in `custom.weights.pretrained_file`; empty where there are none.

    Raises:
        WeightsError: as `find_last`.
    """
    if last := find_last(save_dir, resume):
        return Weights(last, optional=True, resume_from=last)
    return Weights(pretrained_file(pretrained or ""), CONTRACT + ENCODER, optional=True)


def find_last(save_dir: str | Path, resume: bool | str) -> str:
    """The checkpoint to go on from: `last.ckpt`, or the one before if that is damaged or missing, with a warning.

    Args:
        save_dir: the bundle's `models` folder.
        resume: false, true, or `auto`: true where there is a checkpoint.

    Returns:
        Its path; empty where the training starts anew.

    Raises:
        WeightsError: no checkpoint where there must be one, or none that is sound.
    """
    if not resume:
        return ""
    paths = [path for name in (LAST, PREVIOUS) if (path := Path(save_dir) / name).is_file()]
    if not paths and resume == "auto":
        return ""
    if not paths:
        raise WeightsError(f"nothing to resume from: no {Path(save_dir) / LAST}; train without --resume first")
    faults = []
    for path in paths:
        try:
            check_whole(path)
        except WeightsError as error:
            faults.append(str(error))
            continue
        if path.name != LAST:
            logger.warning("going on from %s: %s", path, faults[0] if faults else f"{LAST} is missing")
        return str(path)
    raise WeightsError(f"no sound checkpoint to resume from: {'; '.join(faults)}")


def check_whole(path: Path) -> None:
    """Read a whole checkpoint against its checksums, which `torch.load` passes over.

    Raises:
        WeightsError: it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged archive makes zipfile stumble in many ways
        raise WeightsError(f"{path} is damaged: {error}") from error
    if damaged is not None:
        raise WeightsError(f"{path} is damaged: the checksum of {damaged} does not fit")
    read_checkpoint(path)


class Checkpoints:
    """Write `last.ckpt` after every epoch, and resume from it.

    It holds the network, the further objects, the progress of the trainer, and a digest of its cases: a training that
    goes on with others says so in the log. It is written under a temporary name first, and the last state but one is
    kept as `previous.ckpt`. Weights that are not finite are not written. Attach it behind all others.

    When the run is asked to leave, the state after the current step is written, or where a validation runs, that before
    it; with several processes a validation is finished first. A resumed training goes on with the next step.

    Args:
        save_dir: the bundle's `models` folder.
        network: its weights, without a distributed wrapper.
        evaluator: a validation of it may be left where the run is asked to leave.
        objects: further things with a state: optimiser, schedule.
        handlers: of the trainer, with a state: attached here, so that a config can name them once.
        resume_from: state to go on from (`find_last`); empty starts anew.
        carried: what goes with the weights, as in `BestWeights`.
        seed: of the training; every step draws from it, the process and the iteration.
        others: what has a generator of its own (`custom.training.randomness.SeedSteps`).

    Raises:
        WeightsError: at the start, when the state does not fit.
        NumbersError: weights that are not finite.
    """

    def __init__(
        self,
        save_dir: str | Path,
        network: nn.Module,
        evaluator: Engine,
        objects: Mapping[str, Any],
        handlers: Mapping[str, Any] | None = None,
        resume_from: str | Path = "",
        carried: Mapping[str, Any] | None = None,
        seed: int = 0,
        others: Sequence[Seedable] = (),
    ) -> None:
        self.save_dir = Path(save_dir)
        self.network = network
        self.evaluator = evaluator
        self.handlers = dict(handlers or {})
        self.objects = {**objects, **self.handlers}
        self.resume_from = resume_from
        self.carried = dict(carried or {})
        self.steps = SeedSteps(seed, others)
        self.preemption = Preemption()
        self.validation_cut = False
        self.last_is_own = Path(resume_from).name == LAST
        self.cohort = ""

    def attach(self, engine: Engine) -> None:
        engine.state_dict_user_keys.extend(["best_metric", "best_metric_epoch"])
        for handler in (self.steps, *self.handlers.values(), self.preemption):
            handler.attach(engine)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.end_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.end_epoch)
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.cut_validation)

    def start(self, trainer: Engine) -> None:
        self.cohort = cohort_digest(cases_of(trainer))
        if idist.get_rank() == 0:
            for left_over in self.save_dir.glob(".partial_*"):  # of a run that was killed while it wrote
                left_over.unlink(missing_ok=True)
            if self.resume_from and not self.last_is_own:
                (self.save_dir / LAST).unlink(missing_ok=True)  # damaged; it must not become the one before
        if self.resume_from:
            self.load_last(trainer)

    def load_last(self, trainer: Engine) -> None:
        state = read_checkpoint(self.resume_from)
        self.load_objects(state)
        self.load_progress(trainer, state)
        if trainer.scaler and state["scaler"]:  # the run before may have had another precision
            trainer.scaler.load_state_dict(state["scaler"])
        done = trainer.state.iteration % trainer.state.epoch_length
        if isinstance(sampler := getattr(trainer.data_loader, "sampler", None), SampleOrder):
            sampler.skip(done)
        logger.info("resumed from %s after epoch %d, step %d", self.resume_from, trainer.state.epoch, done)
        if not state["epoch_ended"] and not done:
            trainer.fire_event(Events.EPOCH_COMPLETED)  # its last step was the last that was saved

    def load_objects(self, state: Mapping[str, Any]) -> None:
        try:
            self.network.load_state_dict(state["network"])
            for name, item in self.objects.items():
                item.load_state_dict(adapted(state[name], item))
        except (IndexError, KeyError, RuntimeError, ValueError) as error:  # of more processes than before, an index
            reason = " ".join(str(error).split())[:300]
            raise WeightsError(
                f"{self.resume_from} does not fit; resume with the sizes and the version it was trained with: {reason}"
            ) from error

    def load_progress(self, trainer: Engine, state: Mapping[str, Any]) -> None:
        if state.get("cohort", self.cohort) != self.cohort:  # of before 2026-11-29 it is not known
            logger.warning(
                "%s was trained on other cases, labels or images than this run has; resume with those of before, or "
                "train without --resume",
                self.resume_from,
            )
        wanted, length, saved = trainer.state.max_epochs, trainer.state.epoch_length, state["trainer"]
        if length != saved["epoch_length"]:
            raise WeightsError(
                f"{self.resume_from} had {saved['epoch_length']} steps per epoch, this run has {length}; resume with "
                "the cohort, batch_size and number of processes of before"
            )
        trainer.load_state_dict({**saved, "max_epochs": max(wanted, saved["iteration"] // length)})
        trainer.state.max_epochs = wanted
        if trainer.state.epoch >= wanted:
            logger.warning(
                "%s has %d epochs already; to go on, raise --max_epochs above %d",
                self.resume_from,
                trainer.state.epoch,
                wanted,
            )

    def end_step(self, trainer: Engine) -> None:
        if self.preemption.agreed():
            self.save_last(trainer, epoch_ended=False)
            trainer.terminate(skip_completed=True)

    def cut_validation(self, evaluator: Engine) -> None:
        """Leave in the middle of a validation, where no other process waits for its end."""
        if self.preemption.requested and idist.get_world_size() == 1:
            self.validation_cut = True
            evaluator.terminate(skip_completed=True)

    def end_epoch(self, trainer: Engine) -> None:
        self.save_last(trainer, epoch_ended=not self.validation_cut)
        if self.preemption.agreed():
            trainer.terminate(skip_completed=True)

    def save_last(self, trainer: Engine, epoch_ended: bool = True) -> None:
        check_weights(self.network)
        state = {
            "network": self.network.state_dict(),
            **{name: item.state_dict() for name, item in self.objects.items()},
            "scaler": trainer.scaler.state_dict() if trainer.scaler else {},
            "trainer": trainer.state_dict(),
            "epoch_ended": epoch_ended,
            "cohort": self.cohort,
            **self.carried,
        }
        write_checkpoint(self.save_dir / NEXT, state)
        if idist.get_rank() == 0:
            self.rotate()

    def rotate(self) -> None:
        """Make the newest state the last one, and the last of this training, not of one before it, the previous."""
        if self.last_is_own:
            os.replace(self.save_dir / LAST, self.save_dir / PREVIOUS)
        elif not self.resume_from:
            (self.save_dir / PREVIOUS).unlink(missing_ok=True)
        os.replace(self.save_dir / NEXT, self.save_dir / LAST)
        self.last_is_own = True


def cases_of(trainer: Engine) -> list[Case]:
    """The cases that a trainer's data are read from; none where they do not come from files."""
    dataset = getattr(trainer.data_loader, "dataset", None)
    while hasattr(dataset, "dataset"):  # `SeededSamples` holds MONAI's
        dataset = dataset.dataset
    data = getattr(dataset, "data", ())
    return [case for case in data if isinstance(case, Mapping) and isinstance(case.get("image"), str | list)]


def adapted(saved: Mapping[str, Any], item: Any) -> dict[str, Any]:
    """A saved state with what this run decides: how far a schedule goes, and an optimiser's implementation."""
    horizon = {key: vars(item)[key] for key in ("warmup_steps", "t_total") if key in vars(item)}
    if "param_groups" not in saved:
        return {**saved, **horizon}
    own = [{key: group[key] for key in ("fused", "foreach") if key in group} for group in item.param_groups]
    return {**saved, "param_groups": [old | new for old, new in zip(saved["param_groups"], own, strict=True)]}
