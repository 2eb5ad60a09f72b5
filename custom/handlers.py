"""Ignite handlers that MONAI lacks: one row per case, means of the loss's parts, gradient clipping."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.handlers import EarlyStopHandler
from torch import nn

from custom.cohort import Case, CohortError, image_paths
from custom.files import write_rows, write_whole
from custom.metrics import Row


class CaseTable:
    """One row per case over an epoch: gathered over ranks, summarised into `engine.state.metrics`, written as files.

    Attach it as the key metric of an evaluator, where the summary must hold the metric of that name, or as a handler. A
    case that a distributed sampler repeats counts once. The rows are left in `engine.state.cases`.

    Args:
        row: a case's entry of `engine.state.output` to named values (`custom.metrics`).
        summary: all rows to named scalars; None to keep rows only.
        output_dir: where rank 0 writes `<name>.csv`, and with a summary `<name>.json`; None writes nothing.
        name: of the files.
        context: further facts for the JSON file: checkpoint, datalist, seed; a callable is called at the end. Those of
            the leakage guard come by themselves.
        expected: all cases that should get a row; None does not check.

    Raises:
        CohortError: at the end, when all is written, if expected cases are missing; it names them.
    """

    def __init__(
        self,
        row: Callable[[Any], Row],
        summary: Callable[[Sequence[Row]], Mapping[str, float]] | None = None,
        output_dir: str | Path | None = None,
        name: str = "cases",
        context: Mapping[str, Any] | None = None,
        expected: Sequence[Case] | None = None,
    ) -> None:
        self.row = row
        self.summary = summary
        self.output_dir = output_dir and Path(output_dir)
        self.name = name
        self.context = dict(context or {})
        self.expected = expected
        self.rows: list[Row] = []

    def attach(self, engine: Engine, name: str | None = None) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.rows.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish)

    def collect(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            self.rows.append({**case_identity(item), **self.row(output), **plane_columns(item)})

    def context_now(self) -> dict[str, Any]:
        """The further facts, those included that are known only once the evaluation runs."""
        return {name: value() if callable(value) else value for name, value in self.context.items()}

    def finish(self, engine: Engine) -> None:
        rows = gathered(self.rows)
        engine.state.cases = rows
        summary = dict(self.summary(rows)) if self.summary and rows else {}
        engine.state.metrics.update({name: value for name, value in summary.items() if name.split("_")[0] != "n"})
        if self.output_dir and (not dist.is_initialized() or dist.get_rank() == 0):
            write_csv(self.output_dir / f"{self.name}.csv", rows)
            if summary:
                write_json(
                    self.output_dir / f"{self.name}.json", {**self.context_now(), **leakage(engine), "metrics": summary}
                )
        check_complete(self.expected, rows)


def leakage(engine: Engine) -> dict[str, Any]:
    """What `custom.provenance.LeakageGuard` found, if it was asked."""
    return {"leakage": engine.state.leakage} if hasattr(engine.state, "leakage") else {}


def check_complete(expected: Sequence[Case] | None, rows: Sequence[Row]) -> None:
    """Name the expected cases that have no row, if any."""
    done = {row["image"] for row in rows}
    missing = [paths[0] for case in expected or [] if (paths := image_paths(case)) and paths[0] not in done]
    if missing:
        raise CohortError(
            f"{len(missing)} of {len(expected)} cases failed, the results of the others are written; the log says why: "
            + ", ".join(missing)
        )


def case_identity(item: Mapping[str, Any]) -> Row:
    """Subject and file of a case, from its entry of `engine.state.batch`."""
    file = str(getattr(item.get("image"), "meta", {}).get("filename_or_obj", ""))
    return {"subject": str(item.get("subject", Path(file).name.split(".")[0])), "image": file}


def plane_columns(item: Mapping[str, Any]) -> Row:
    """The midsagittal plane of a case and its quality; only where it came from when the volume was taken as it lies."""
    figures = getattr(item.get("image"), "meta", {}).get("midsagittal")
    if figures is None:
        return {}
    source = "estimated" if figures else "center of the array"
    return {"plane": source, **{f"plane_{name}": float(value) for name, value in figures.items()}}


def gathered(rows: Sequence[Row]) -> list[Row]:
    """Rows of all ranks, each case once, ordered by subject and file."""
    parts = [list(rows)]
    if dist.is_initialized():
        parts = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, list(rows))
    unique = {(row["subject"], row["image"]): row for part in parts for row in part}
    return [unique[key] for key in sorted(unique)]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A table with a header; figures that are not defined (NaN) stay empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    defined = ({name: "" if _undefined(value) else value for name, value in row.items()} for row in rows)
    write_rows(path, names, defined)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented JSON; figures that are not defined (NaN) become null."""
    metrics = {name: None if _undefined(value) else value for name, value in content["metrics"].items()}
    write_whole(path, json.dumps({**content, "metrics": metrics}, indent=2) + "\n")


def _undefined(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


class LossParts:
    """Epoch means of a training's loss, and of its parts where the loss has them, in `engine.state.metrics`.

    Attach it as the trainer's key metric, under the name `train_loss`.

    Args:
        loss_function: a loss that keeps its latest values in `parts` (`custom.losses.PretextLoss`); any other is taken
            whole.
    """

    def __init__(self, loss_function: nn.Module) -> None:
        self.loss_function = loss_function
        self.values: list[dict[str, float]] = []

    def attach(self, engine: Engine, name: str = "train_loss") -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.values.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish)

    def collect(self, engine: Engine) -> None:
        output = engine.state.output
        whole = torch.as_tensor(output[0]["loss"] if isinstance(output, list) else output["loss"])
        self.values.append(dict(getattr(self.loss_function, "parts", {"loss": whole.item()})))

    def finish(self, engine: Engine) -> None:
        for name in self.values[0]:
            mean = sum(values[name] for values in self.values) / len(self.values)
            engine.state.metrics[f"train_{name}"] = idist.all_reduce(mean) / idist.get_world_size()


class StopEarly:
    """MONAI's `EarlyStopHandler` on the evaluator's key metric, attached from the trainer's side.

    In a config the evaluator exists before the trainer, so a handler of the evaluator cannot name the trainer to stop.

    Args:
        evaluator: whose key metric (higher is better) must make progress.
        patience: validations without progress before training stops.
    """

    def __init__(self, evaluator: Engine, patience: int) -> None:
        self.evaluator = evaluator
        self.patience = patience

    def attach(self, engine: Engine) -> None:
        EarlyStopHandler(self.patience, self.score, trainer=engine).attach(self.evaluator)

    def score(self, evaluator: Engine) -> float:
        return evaluator.state.metrics[evaluator.state.key_metric_name]


class ClipGradients:
    """Clip the norm of the gradients between backward pass and optimiser step, with mixed precision or without.

    Args:
        network: whose gradients to clip.
        max_norm: largest norm, over all parameters together.
    """

    def __init__(self, network: nn.Module, max_norm: float = 1.0) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if engine.amp and engine.scaler is not None:
            engine.scaler.unscale_(engine.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
