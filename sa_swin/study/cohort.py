"""The cohort of a study: made once, aligned once, with the same split by subject for every cell."""

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from custom.data import datalist
from custom.support.files import write_whole
from sa_swin.phantom import cohort as phantom
from sa_swin.prepare import cohort as prepare
from sa_swin.study.plan import Study, StudyError

FACTS = ("healthy", "side", "diagnosis")
"""What groups of cases are made from."""
KINDS = ("healthy", "one-sided", "bilateral", "midline")


def make_cohort(study: Study, folder: Path, workers: int) -> None:
    """Make the built-in cohort of a study and its aligned version; what is there already is not made again."""
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in study.content["cohort"].items()}
    with stopping():
        phantom.phantom_command(output=str(folder / "cohort"), workers=workers, **options)
        if not (folder / "aligned" / "planes.csv").exists():
            grid = study.content["grid"]
            prepare.prepare_command(
                output=str(folder / "aligned"), dataset_dir=str(folder / "cohort"), workers=workers, **grid,
                untrusted="leave_out",
            )  # fmt: skip
    keep_common(folder)


@contextlib.contextmanager
def stopping() -> Any:
    """A command line's exit with a message as an error."""
    try:
        yield
    except SystemExit as error:
        raise StudyError(str(error)) from error


def keep_common(folder: Path) -> None:
    """Leave in the raw cohort's lists what the aligned ones have: all arms are measured on the same subjects."""
    for path in sorted((folder / "aligned" / "datalists").glob("*.json")):
        kept = {entry["subject"] for entries in read_lists(path).values() for entry in entries}
        own = folder / "cohort" / "datalists" / path.name
        lists = {name: [e for e in entries if e["subject"] in kept] for name, entries in read_lists(own).items()}
        if lists != read_lists(own):  # another study may be reading it
            write_whole(own, json.dumps(lists, indent=2) + "\n")


def read_lists(path: Path) -> dict[str, list[dict[str, Any]]]:
    """A datalist's lists of entries."""
    return {name: entries for name, entries in datalist.read_lists(path).items() if isinstance(entries, list)}


def test_facts(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Facts of every test subject, from the datalist that names all of them."""
    entries = read_lists(folder / "aligned" / "datalists" / "classify.json")["testing"]
    return {entry["subject"]: {key: entry[key] for key in FACTS} for entry in entries}


def sizes(folder: Path) -> dict[str, dict[str, int]]:
    """Subjects in each part of the split, by kind: healthy, one-sided, bilateral, midline; those that there are."""
    lists = read_lists(folder / "aligned" / "datalists" / "classify.json")
    counts = {name: Counter(map(kind, entries)) for name, entries in lists.items()}
    return {name: {own: found[own] for own in KINDS if found[own]} for name, found in counts.items()}


def kind(entry: Mapping[str, Any]) -> str:
    """Which of `KINDS` a subject is."""
    return (
        "healthy" if entry["healthy"] else {"both": "bilateral", "midline": "midline"}.get(entry["side"], "one-sided")
    )
