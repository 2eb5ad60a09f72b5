"""Leakage between the lists of the stages: subjects and images that one is trained on and another is measured on."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from custom.data.case import image_paths, refuse_outside, subject_of
from custom.data.contents import contents_of
from sa_swin.cohort.checks import Entry, read_entries

STAGES = ("pretrain", "classify", "segment")


@dataclass(frozen=True)
class StagePart:
    """One part of one stage's list.

    Args:
        stage: `pretrain`, `classify` or `segment`.
        name: `training`, `validation`, `testing` or `fold N`.
        labelled: whether its labels are used.
        entries: its cases.
    """

    stage: str
    name: str
    labelled: bool
    entries: Sequence[Entry] = field(compare=False)

    def __str__(self) -> str:
        return f"{self.stage} {self.name}"

    @property
    def is_fold(self) -> bool:
        """Whether it is trained on in some runs and held out in one."""
        return self.name.startswith("fold ")


@dataclass(frozen=True)
class Leak:
    """A case that is measured on after a stage saw its subject or its image.

    Args:
        file: image of the case.
        subject: of the case.
        held: part that it is measured in.
        seen: part that was trained or selected on.
        how: `subject`, or the file that holds the same image.
        severity: `error`, or `warning` where it spoils nothing by itself.
        problem: all this in a sentence.
    """

    file: str
    subject: str
    held: str
    seen: str
    how: str
    severity: str
    problem: str


def parts_of(stage: str, datalist: Path, dataset_dir: Path, labelled: bool) -> list[StagePart]:
    """The parts of a stage's list."""
    by_name = defaultdict(list)
    for entry in read_entries(datalist, dataset_dir):
        by_name[entry.part].append(entry)
    return [StagePart(stage, name, labelled, entries) for name, entries in by_name.items()]


def severity_of(seen: StagePart, held: StagePart) -> str | None:
    """What it is if a case of `held` is also in `seen`: `error`, `warning`, or None where it is as it should be.

    The stages follow one another as pretrain -> classify or segment. A stage's validation part was seen when its
    weights were selected, so the test parts of what follows must not hold it; the validation parts may. Folds of one
    number are held out together.
    """
    if seen.name == "testing" or held.name == "training":
        return None
    if seen.stage == held.stage:
        order = ("training", "validation", "testing")
        folds = seen.is_fold and held.is_fold
        ahead = seen.name < held.name if folds else order.index(_name(seen)) < order.index(_name(held))
        return "error" if ahead and seen.labelled else "warning" if ahead else None
    if held.stage == "pretrain":
        return None
    if seen.stage != "pretrain":  # two fine-tunings: only if the weights of one go into the other
        return "warning" if held.name == "testing" else None
    together = seen.name == held.name or (seen.name == "validation" and held.is_fold)
    if together and held.name != "testing":
        return None
    return "error" if seen.labelled else "warning"


def _name(part: StagePart) -> str:
    return "training" if part.is_fold else part.name


def find_leaks(parts: Sequence[StagePart], contents: Mapping[str, frozenset[str]]) -> list[Leak]:
    """All leaks between the parts, by subject and by image.

    Args:
        parts: of all stages.
        contents: content hashes by image file; empty compares subjects alone.
    """
    leaks = []
    for seen in parts:
        subjects = {subject_of(entry.case) for entry in seen.entries}
        images = {value: path for path in _paths(seen) for value in contents.get(path, ())}
        for held in parts:
            severity = severity_of(seen, held) if held != seen else None
            if severity:
                leaks += _leaks_between(seen, held, subjects, images, contents, severity)
    return sorted(dict.fromkeys(leaks), key=lambda leak: (leak.severity, leak.held, leak.seen, leak.file))


def _leaks_between(
    seen: StagePart,
    held: StagePart,
    subjects: set[str],
    images: Mapping[str, str],
    contents: Mapping[str, frozenset[str]],
    severity: str,
) -> Iterator[Leak]:
    for entry in held.entries:
        subject, paths = subject_of(entry.case), image_paths(entry.case)
        same = next((images[value] for path in paths for value in contents.get(path, ()) if value in images), None)
        if not paths or (subject not in subjects and same is None):
            continue
        what = "its subject is" if subject in subjects else f"its image is {same}, under another name,"
        without = "" if seen.labelled else ", without a label"
        problem = f"subject {subject} of {held}: {what} in {seen}{without}"
        how = "subject" if subject in subjects else str(same)
        yield Leak(paths[0], subject, str(held), str(seen), how, severity, problem)


def _paths(part: StagePart) -> list[str]:
    return [path for entry in part.entries for path in image_paths(entry.case)]


def compare_lists(
    datalists: Mapping[str, tuple[Path, Path]],
    label_free: bool = False,
    images: bool = True,
    workers: int = 4,
    allow_outside: bool = False,
) -> list[Leak]:
    """Leaks between the lists of the stages.

    Args:
        datalists: by stage, the list and what its paths are relative to.
        label_free: pretraining uses no label (objectives `label_free` and `reconstruction`).
        images: compare what the images hold, too; the hashes are kept beside the lists.
        workers: threads that read images.
        allow_outside: read files outside of the datasets, too.

    Raises:
        CohortError: images that lie outside or cannot be read.
    """
    parts, contents = [], {}
    for stage, (datalist, dataset_dir) in datalists.items():
        own = parts_of(stage, datalist, dataset_dir, labelled=not (stage == "pretrain" and label_free))
        parts += own
        if images:
            paths = [path for part in own for path in _paths(part)]
            refuse_outside(paths, dataset_dir, allow_outside)
            contents |= contents_of(paths, datalist.parent, workers)
    return find_leaks(parts, contents)


def as_text(leaks: Sequence[Leak], shown: int = 10) -> str:
    """The leaks for people, grouped by the two parts, and what to do."""
    groups = defaultdict(list)
    for leak in leaks:
        groups[leak.severity, leak.seen, leak.held].append(leak)
    lines = []
    for (severity, seen, held), own in groups.items():
        lines.append(f"{severity}: {len(own)} case(s) of {held} are in {seen}")
        lines += [f"  {leak.file}: {leak.problem}" for leak in own[:shown]]
        lines += [f"  and {len(own) - shown} more"] if len(own) > shown else []
    errors = sum(leak.severity == "error" for leak in leaks)
    lines.append(f"{errors} leak(s), {len(leaks) - errors} warning(s)")
    if errors:
        lines.append(
            "make the lists of all stages in one go (sa-swin cohort build), or leave these cases out of training"
        )
    return "\n".join(lines)


def as_json(leaks: Sequence[Leak]) -> dict[str, Any]:
    """The leaks for machines."""
    return {"leaks": [asdict(leak) for leak in leaks]}
