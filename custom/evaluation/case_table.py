"""Ignite handlers that MONAI lacks: a row per case, calibration, predictions that are not finite."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import decollate_batch
from monai.engines.utils import IterationEvents
from torch import nn

from custom.data.case import Case, CohortError, image_paths
from custom.data.dataset import FailedCase
from custom.evaluation.calibration import FEWEST, fit_calibration
from custom.evaluation.metrics import Row, class_probabilities
from custom.support.errors import NumbersError
from custom.support.files import json_text, write_rows, write_whole

logger = logging.getLogger(__name__)


class CaseTable:
    """One row per case over an epoch: gathered over ranks, summarised into `engine.state.metrics`, written as files.

    Attach it as the key metric of an evaluator, where the summary must hold the metric of that name, or as a handler. A
    case that a distributed sampler repeats counts once. The rows are left in `engine.state.cases`.

    Args:
        row: a case's entry of `engine.state.output` to named values (`custom.evaluation.metrics`).
        summary: all rows to named scalars; None to keep rows only.
        output_dir: where rank 0 writes `<name>.csv`, and with a summary `<name>.json`; None writes nothing.
        name: of the files.
        context: further facts for the JSON file: checkpoint, datalist, seed; a callable is called at the end. Those of
            the leakage guard come by themselves.
        expected: all cases that should get a row; None does not check.
        class_names: of the classes in their order: further columns name the label, the prediction, a finding's class.

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
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.row = row
        self.summary = summary
        self.output_dir = output_dir and Path(output_dir)
        self.name = name
        self.context = dict(context or {})
        self.expected = expected
        self.class_names = class_names
        self.rows: list[Row] = []

    def attach(self, engine: Engine, name: str | None = None) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.rows.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish)

    def collect(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            self.rows.append(
                {**case_identity(item), **named(self.row(output), self.class_names), **plane_columns(item)}
            )

    def context_now(self) -> dict[str, Any]:
        """The further facts, those included that are known only once the evaluation runs."""
        return {name: value() if callable(value) else value for name, value in self.context.items()}

    def finish(self, engine: Engine) -> None:
        rows = gathered(self.rows)
        engine.state.cases = rows
        summary = dict(self.summary(rows)) if self.summary and rows else {}
        engine.state.metrics.update({name: value for name, value in summary.items() if name.split("_")[0] != "n"})
        if self.output_dir and idist.get_rank() == 0:
            write_csv(self.output_dir / f"{self.name}.csv", rows)
            if summary:
                write_json(
                    self.output_dir / f"{self.name}.json", {**self.context_now(), **leakage(engine), "metrics": summary}
                )
        check_complete(self.expected, rows, getattr(engine, "failed", {}))


def named(row: Row, class_names: Sequence[str] | None) -> Row:
    """A row with names beside the numbers of its classes: `label_name`, `prediction_name`, a finding's `class_name`."""
    if class_names is None:
        return row
    out: Row = {}
    for column, value in row.items():
        out[column] = value
        if column == "findings":
            out[column] = [named(finding, class_names) for finding in value]
        if column in ("label", "prediction", "class") and isinstance(value, int) and value < len(class_names):
            out[f"{column}_name"] = class_names[value]
    return out


class CalibrationFit:
    """After each validation, fit the network's temperature and class biases to its cases; the weights hold them.

    Attach it behind the `CaseTable` of the validation, whose cases are predicted without them. With fewer than `FEWEST`
    cases in a class nothing is fitted, with a warning.

    Args:
        network: a classifier with buffers `temperature` and `class_bias`.
        enabled: if not, the network's probabilities stay as they are trained.
    """

    def __init__(self, network: nn.Module, enabled: bool = True) -> None:
        self.network = network
        self.enabled = enabled

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: self.set(1.0, 0.0))
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.fit)

    def fit(self, engine: Engine) -> None:
        if not self.enabled:
            return
        probabilities, labels = class_probabilities(engine.state.cases)
        counts = np.bincount(labels, minlength=probabilities.shape[1]).tolist()
        if few := [f"{count} of class {index}" for index, count in enumerate(counts) if count < FEWEST]:
            logger.warning(
                "not calibrated, the probabilities stay as they were trained: the validation has %s; expected %d or "
                "more of each class",
                ", ".join(few),
                FEWEST,
            )
            return
        temperature, bias = fit_calibration(probabilities, labels)
        self.set(temperature, torch.from_numpy(bias))

    def set(self, temperature: float, bias: torch.Tensor | float) -> None:
        self.network.temperature.fill_(temperature)
        self.network.class_bias.copy_(torch.as_tensor(bias))


def leakage(engine: Engine) -> dict[str, Any]:
    """What `custom.weights.LeakageGuard` found, if it was asked."""
    return {"leakage": engine.state.leakage} if hasattr(engine.state, "leakage") else {}


def check_complete(
    expected: Sequence[Case] | None, rows: Sequence[Row], failed: Mapping[str, FailedCase] = MappingProxyType({})
) -> None:
    """Name the expected cases that have no row, if any, with their reasons as far as these are known.

    Raises:
        CohortError: naming them.
    """
    done = {row["image"] for row in rows}
    missing = [paths[0] for case in expected or [] if (paths := image_paths(case)) and paths[0] not in done]
    if missing:
        known = [failed.get(path, FailedCase(path, "the log says why")) for path in missing]
        remedies = dict.fromkeys(case.remedy for case in known if case.remedy)
        others = ", the results of the others are written" if rows else ""
        first = f"{len(missing)} of {len(expected)} cases failed{others}:"
        raise CohortError("\n  ".join([first, *map(str, known), *remedies]))


def case_identity(item: Mapping[str, Any]) -> Row:
    """Subject and file of a case, from its entry of `engine.state.batch`."""
    file = str(getattr(item.get("image"), "meta", {}).get("filename_or_obj", ""))
    return {"subject": str(item.get("subject", Path(file).name.split(".")[0])), "image": file}


def names_of(batch: Mapping[str, Any]) -> str:
    """Subjects and files of a batch as it came from the data loader, each once."""
    items = map(case_identity, decollate_batch(batch))
    return ", ".join(dict.fromkeys("{subject} ({image})".format(**item) for item in items))


def plane_columns(item: Mapping[str, Any]) -> Row:
    """The midsagittal plane of a case, where it came from and its quality; of a volume as it lies, only that.

    A homologous counterpart adds its own quality, and why the mirror image is used instead, if it is.
    """
    meta = getattr(item.get("image"), "meta", {})
    if "plane" not in meta:
        return {}
    known = {name: float(value) for name, value in meta["midsagittal"].items()}
    figures = {f"plane_{name}": value for name, value in known.items() if not math.isnan(value)}
    if meta["plane_reason"]:
        figures["plane_reason"] = meta["plane_reason"]
    found = meta.get("counterpart") or {}
    return {"plane": meta["plane"], **figures} | {
        f"counterpart_{name}": value if name == "reason" else float(value) for name, value in found.items()
    }


def gathered(rows: Sequence[Row]) -> list[Row]:
    """Rows of all ranks, each case once, ordered by subject and file."""
    unique = {(row["subject"], row["image"]): row for part in idist.all_gather(list(rows)) for row in part}
    return [unique[key] for key in sorted(unique)]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A table with a header; figures that are not defined (NaN) stay empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    defined = ({name: "" if _undefined(value) else value for name, value in row.items()} for row in rows)
    write_rows(path, names, defined)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented JSON; figures that are not defined (NaN) become null."""
    metrics = {name: None if _undefined(value) else value for name, value in content["metrics"].items()}
    write_whole(path, json_text({**content, "metrics": metrics}))


def _undefined(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


class PredictionGuard:
    """Refuse predictions that are not finite, before anything is made of them: NaN would become some class of a mask.

    Raises:
        NumbersError: with the cases.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        pred = engine.state.output["pred"]
        tensors = pred.values() if isinstance(pred, Mapping) else [pred]
        if not all(torch.isfinite(tensor).all() for tensor in tensors):
            raise NumbersError(
                f"the prediction is not finite for {names_of(engine.state.batch)}: nothing is written for it; look at "
                "the images, or compute with --precision fp32"
            )
