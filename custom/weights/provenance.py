"""What weights have seen: recorded with every checkpoint, handed on by weight transfer, asked before an evaluation.

A record names a stage, the list it was in, the kind of label that was used, and hashes of subjects and of image
contents. The hashes are salted anew for each record, so that a released checkpoint names nobody; who knows a subject's
id can still ask whether it is in there. The weights carry the records as `seen` (`custom.weights.settings.carrying`).
"""

import hashlib
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ignite.engine import Engine, Events

from custom.data.case import Case, CohortError, image_paths, subject_of
from custom.data.contents import contents_of
from custom.support.errors import UserError
from custom.weights.settings import carried, paths_of
from custom.weights.transfer import weights_digest

Record = dict[str, Any]
"""`stage`, `section`, `label` (`none`, `healthy`, `class`, `mask`, `unknown`), `salt`, `subjects`, `images`."""

_TEXTS, _LISTS = ("stage", "section", "label", "salt"), ("subjects", "images")

logger = logging.getLogger(__name__)


class LeakageError(CohortError):
    """Cases to be measured on that were seen with a label before."""


def salted(salt: str, text: str) -> str:
    """The salted hash of a subject's id or an image's content."""
    return hashlib.sha256(f"{salt}:{text}".encode(errors="surrogatepass")).hexdigest()[:20]


def records_of(path: str | Path) -> list[Record]:
    """What the weights of a checkpoint have seen; weights that do not say so have an `unknown` record.

    Args:
        path: `model.pt`, `last.ckpt`, or weights from elsewhere.

    Raises:
        WeightsError: no such file, or not a checkpoint.
    """
    records = carried(path, "seen")
    if isinstance(records, list) and records and all(map(_is_record, records)):
        return records
    return [_record(f"unknown (SHA-256 {weights_digest(path)[:12]})", "unknown", "unknown")]


def _is_record(record: Any) -> bool:
    """Whether weights from elsewhere carry a record that can be read."""
    if not isinstance(record, Mapping) or not {*_TEXTS, *_LISTS} <= record.keys():
        return False
    if not all(isinstance(record[name], list) for name in _LISTS):
        return False
    texts = [record[name] for name in _TEXTS] + [text for name in _LISTS for text in record[name]]
    return all(isinstance(text, str) for text in texts)


def _record(stage: str, section: str, label: str, salt: str = "") -> Record:
    return {"stage": stage, "section": section, "label": label, "salt": salt, "subjects": [], "images": []}


def saw_label(record: Record) -> bool:
    """Whether a record is of a training with labels."""
    return record["label"] not in ("none", "unknown")


def merged(records: Sequence[Record], record: Record) -> list[Record]:
    """Records with one more; what a stage has seen before (a resumed training) goes into one with it."""
    same = ("stage", "section", "label", "salt")
    for i, known in enumerate(records):
        if all(known[key] == record[key] for key in same):
            union = {key: sorted({*known[key], *record[key]}) for key in ("subjects", "images")}
            return [*records[:i], known | union, *records[i + 1 :]]
    return [*records, record]


def record_of(
    stage: str, section: str, label: str, cases: Sequence[Case], contents: Mapping[str, frozenset[str]], salt: str
) -> Record:
    """The record of a list of cases."""
    values = {value for case in cases for path in image_paths(case) for value in contents[path]}
    return _record(stage, section, label, salt) | {
        "subjects": sorted({salted(salt, subject_of(case)) for case in cases}),
        "images": sorted(salted(salt, value) for value in values),
    }


def overlaps(
    cases: Sequence[Case], records: Iterable[Record], contents: Mapping[str, frozenset[str]]
) -> dict[int, tuple[Record, str]]:
    """The cases that records hold, by position: the first such record, and a sentence."""
    found: dict[int, tuple[Record, str]] = {}
    for record in records:
        subjects, images = set(record["subjects"]), set(record["images"])
        for i, case in enumerate(cases):
            if i in found:
                continue
            own = {value for path in image_paths(case) for value in contents[path]}
            by_subject = salted(record["salt"], subject_of(case)) in subjects
            if by_subject or any(salted(record["salt"], value) in images for value in own):
                what = f"subject {subject_of(case)}" if by_subject else "this image, under another name,"
                label = "without a label" if record["label"] == "none" else f"with its {record['label']} label"
                where = f"{what} was in the {record['section']} list of {record['stage']}, {label}"
                found[i] = (record, f"{image_paths(case)[0]}: {where}")
    return found


def on_rank_0(work: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, done in the first process only; all processes get its result, or its `UserError`."""

    @wraps(work)
    def done(*args: Any, **kwargs: Any) -> Any:
        if not dist.is_initialized():
            return work(*args, **kwargs)
        box: list[Any] = [None, None]
        if dist.get_rank() == 0:
            try:
                box[0] = work(*args, **kwargs)
            except UserError as error:
                box[1] = error
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]

    return done


@on_rank_0
def record_training(
    stage: str,
    label: str,
    training: Sequence[Case],
    validation: Sequence[Case],
    datalist: str | Path,
    source: str | Path = "",
    allow_leakage: bool = False,
) -> list[Record]:
    """What the weights of a training will have seen, the weights it starts from included.

    Refuses a validation list that holds subjects or images of the training list, or that the weights were trained on
    before, where a label was used. The images' hashes are kept beside the datalist for the next time.

    Args:
        stage: `pretrain`, `classify` or `segment`.
        label: kind of label used: `none`, `healthy`, `class` or `mask`.
        training: cases to train on.
        validation: cases to select weights on.
        datalist: beside which hashes are kept.
        source: checkpoint that the training starts from or goes on from, if any.
        allow_leakage: warn only.

    Raises:
        LeakageError: with the cases.
    """
    # That a checkpoint is missing is said, better, by what loads it.
    records = records_of(source) if source and Path(source).is_file() else []
    contents = _contents([*training, *validation], datalist)
    own = []
    for section, cases in (("training", training), ("validation", validation)):
        known = (r["salt"] for r in records if (r["stage"], r["section"], r["label"]) == (stage, section, label))
        own.append(record_of(stage, section, label, cases, contents, next(known, secrets.token_hex(8))))
    before = [record for record in (*own, *records) if record["section"] == "training" and saw_label(record)]
    leaks = overlaps(validation, before, contents)
    if leaks:
        _refuse_or_warn("validation", [sentence for _, sentence in leaks.values()], len(validation), allow_leakage)
    for record in own:
        records = merged(records, record)
    return records


def _contents(cases: Sequence[Case], datalist: str | Path) -> dict[str, frozenset[str]]:
    return contents_of((path for case in cases for path in image_paths(case)), Path(datalist).parent)


def _refuse_or_warn(what: str, sentences: Sequence[str], number: int, allow_leakage: bool, shown: int = 10) -> None:
    more = [f"and {len(sentences) - shown} more"] if len(sentences) > shown else []
    message = "\n  ".join([f"{len(sentences)} of {number} {what} cases were seen before:", *sentences[:shown], *more])
    if not allow_leakage:
        raise LeakageError(
            f"{message}\nLeave them out, or give other persons other ids; --allow_leakage True goes on all the same"
        )
    logger.warning("%s", message)


class LeakageGuard:
    """Ignite handler of an evaluator: refuse cases that the weights, or those they came from, saw with a label.

    Where the validation list itself is measured, as for intervals, cases that the weights were only selected on are
    taken, and the verdict says so.

    What was found is left in `engine.state.leakage`, for the report: a `verdict` in words, how many cases were seen
    with and without a label, and what the weights saw.

    Args:
        cases: to be measured on.
        checkpoint: weights, or a list of those that are used together.
        datalist: beside which the images' hashes are kept.
        allow_leakage: go on all the same; the report says so.
        section: list of the datalist that is measured.

    Raises:
        LeakageError: at the start, with the cases.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        checkpoint: str | Path | Sequence[str | Path],
        datalist: str | Path,
        allow_leakage: bool = False,
        section: str = "testing",
    ) -> None:
        self.cases = cases
        self.checkpoint = checkpoint
        self.datalist = datalist
        self.allow_leakage = allow_leakage
        self.section = section
        self.found: dict[str, Any] | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        engine.state.leakage = self.check()

    @on_rank_0
    def check(self) -> dict[str, Any]:
        """What is left in `engine.state.leakage`; it is looked for once, before a run that may say so at its start."""
        if self.found is None:
            self.found = self._found()
        return self.found

    def _found(self) -> dict[str, Any]:
        records = [record for path in paths_of(self.checkpoint) for record in records_of(path)]
        contents = _contents(self.cases, self.datalist)
        selecting = [record for record in records if "validation" == record["section"] == self.section]
        labelled = overlaps(self.cases, [r for r in records if saw_label(r) and r not in selecting], contents)
        selected = len(overlaps(self.cases, selecting, contents).keys() - labelled.keys())
        plain = overlaps(self.cases, [record for record in records if record["label"] == "none"], contents)
        if labelled:
            sentences = [sentence for _, sentence in labelled.values()]
            _refuse_or_warn("test", sentences, len(self.cases), self.allow_leakage)
        unknown = [record["stage"] for record in records if record["label"] == "unknown"]
        if unknown:
            logger.warning("leakage cannot be ruled out: it is not known what %s saw", ", ".join(unknown))
        return {
            "verdict": _verdict(len(labelled), len(self.cases), unknown, selected),
            "cases_seen_with_label": len(labelled),
            "cases_seen_without_label": len(set(plain) - set(labelled)),
            "weights_saw": [
                f"{r['stage']}, {r['section']}: {len(r['subjects'])} subjects, label {r['label']}" for r in records
            ],
        }


def _verdict(seen: int, number: int, unknown: Sequence[str], selected: int = 0) -> str:
    if seen:
        return (
            f"LEAKAGE, allowed by --allow_leakage: {seen} of {number} cases were seen with a label in training; "
            "these are not figures of unseen cases"
        )
    if unknown:
        return f"unknown: nothing is recorded of what these weights saw: {', '.join(unknown)}"
    if selected:
        return (
            f"none of the {number} cases was trained on, but the weights were selected on {selected} of them: the "
            "figures are a little better than those of unseen cases"
        )
    return f"none of the {number} cases was seen with a label in training"
