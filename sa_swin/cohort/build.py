"""From scans to the datalists of the three bundles: who is in, with which label, in which part."""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from custom.data.case import Case, CohortError
from custom.data.datalist import SECTIONS, read_json
from custom.data.splits import Part, split_subjects
from custom.support.files import json_text, write_whole
from sa_swin.cohort.bids import LeftOut, Scan
from sa_swin.cohort.table import Condition, Facts, class_numbers, require_columns

Datalists = dict[str, dict[str, Any]]
"""Datalists by bundle: `pretrain`, `classify`, `segment`."""


SPELLINGS = dict.fromkeys(("train", "training"), "training")
SPELLINGS |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")
SPELLINGS |= dict.fromkeys(("test", "testing"), "testing")


@dataclass(frozen=True)
class Design:
    """What makes datalists out of scans.

    Args:
        target: column of the class, or None.
        classes: `healthy=0,tumour|infarct=1`, or None to number the target's values in order.
        healthy: conditions that make a subject healthy; none leaves `healthy` out.
        include: conditions that a scan must fulfil.
        keep: further columns to copy into the entries.
        group: columns whose equal values keep subjects together.
        stratify: further columns that the parts shall share alike.
        shares: of training, validation and testing.
        given: column that names the part, in place of shares and folds, or None.
        folds: number of folds in place of training and validation, or 0.
        seed: of the split.
        mask: choice or column of the masks, or None.
    """

    target: str | None = None
    classes: str | Sequence[str] | None = None
    healthy: Sequence[Condition] = ()
    include: Sequence[Condition] = ()
    keep: Sequence[str] = ()
    group: Sequence[str] = ()
    stratify: Sequence[str] = ()
    shares: Sequence[float] = (0.6, 0.15, 0.25)
    given: str | None = None
    folds: int = 0
    seed: int = 0
    mask: str | None = None

    def parts(self) -> dict[Part, float]:
        """Shares of the parts: the sections, or the folds and testing."""
        if len(self.shares) != len(SECTIONS) or min(self.shares) < 0 or self.folds in (1,) or self.folds < 0:
            raise CohortError(
                f"expected three shares, for {', '.join(SECTIONS)}, and 0 or at least 2 folds; "
                f"got {list(self.shares)} and {self.folds}"
            )
        shares = dict(zip(SECTIONS, self.shares, strict=True))
        if self.folds:
            rest = (shares.pop("training") + shares.pop("validation")) / self.folds
            shares = dict.fromkeys(range(self.folds), rest) | shares
        return {part: share for part, share in shares.items() if share > 0}


@dataclass
class Built:
    """What came of a design.

    Args:
        datalists: by bundle.
        left_out: scans that are in none of them or not in all, with the reason.
        subjects: number of subjects by part and stratum.
    """

    datalists: Datalists
    left_out: list[LeftOut]
    subjects: dict[Part, Counter[Hashable]] = field(default_factory=dict)


def build(scans: Sequence[Scan], design: Design, place: str, known: Sequence[Facts] = ()) -> Built:
    """Datalists with one split by subject: `pretrain` always, `classify` with a target, `segment` with masks.

    A scan is in each list that it has what is needed for: `healthy`, if asked for, in `pretrain`; a class in
    `classify`; a mask in `segment`.

    Args:
        scans: candidates.
        design: what to do.
        place: of the columns, for messages.
        known: all rows of the table, those of subjects without a scan, too.

    Raises:
        CohortError: a column that is not there, classes or shares that are none, or nobody left.
    """
    facts, target = [scan.facts for scan in scans], design.target
    wanted = [condition.column for condition in (*design.include, *design.healthy)]
    require_columns([*wanted, *design.group, *design.stratify, *filter(None, (target, design.given))], facts, place)
    kept, left_out = included(scans, design.include)
    known_values = [row[target] for row in (*known, *facts) if target in row]
    numbers = class_numbers((s.facts[target] for s in kept if target in s.facts), design.classes, known_values)
    entries, more = entries_of(kept, design, numbers)
    if not entries:
        raise CohortError(f"{place}: no scan is left; {reasons(left_out + more)}")
    strata = subject_strata(entries, design)
    if design.given:
        parts = given_parts(kept, strata, design.given)
    else:
        parts = split_subjects(strata, design.parts(), groups_of(kept, strata, design.group), design.seed)
    names = SECTIONS if design.given else design.parts()
    subjects = {part: Counter(strata[s] for s, own in parts.items() if own == part) for part in names}
    lists = {name: by_section(cases, parts) for name, cases in by_bundle(entries, design).items() if cases}
    if target and "classify" in lists:
        lists["classify"] = {"labels": label_names(numbers)} | lists["classify"]
    if "segment" in lists:
        lists["segment"] = {"labels": mask_names(design.mask)} | lists["segment"]
    return Built(lists, left_out + more, subjects)


def included(scans: Sequence[Scan], include: Sequence[Condition]) -> tuple[list[Scan], list[LeftOut]]:
    """The scans that fulfil all conditions, and the others with the first that they do not."""
    kept, left_out = [], []
    for scan in scans:
        failed = next((condition for condition in include if not condition.holds(scan.facts)), None)
        if failed is None:
            kept.append(scan)
        else:
            left_out.append({"subject": scan.name, "reason": failed.unknown(scan.facts) or f"not {failed}"})
    return kept, left_out


def entries_of(
    scans: Sequence[Scan], design: Design, numbers: Mapping[str, int]
) -> tuple[list[tuple[Case, str | None]], list[LeftOut]]:
    """An entry and the mask's path per scan, with `healthy` and the class as its `label` where they are known."""
    entries, left_out = [], []
    for scan in scans:
        unknown = next((why for condition in design.healthy if (why := condition.unknown(scan.facts))), None)
        value = scan.facts.get(design.target or "")
        if unknown:
            left_out.append({"subject": scan.name, "reason": f"{unknown} (pretrain)"})
        if design.target and value not in numbers:
            why = f"{design.target} is missing" if value is None else f"{design.target} {value} is no class"
            left_out.append({"subject": scan.name, "reason": f"{why} (classify)"})
        entries.append((_entry(scan, design, numbers, unknown is None), scan.mask))
    return entries, left_out


def _entry(scan: Scan, design: Design, numbers: Mapping[str, int], health_is_known: bool) -> Case:
    entry: Case = {"image": scan.images[0] if len(scan.images) == 1 else list(scan.images), "subject": scan.subject}
    entry |= {key: value for key, value in (("session", scan.session), ("run", scan.run)) if value}
    if design.healthy and health_is_known:
        entry["healthy"] = all(condition.holds(scan.facts) for condition in design.healthy)
    kept = (*design.keep, *design.group, *design.stratify)
    entry |= {name: scan.facts[name] for name in kept if name in scan.facts and name not in entry}
    if design.target and (number := numbers.get(scan.facts.get(design.target, ""))) is not None:
        entry["label"] = number
    return entry


def subject_strata(entries: Sequence[tuple[Case, str | None]], design: Design) -> dict[str, Hashable]:
    """What the split shares out alike: a subject's most frequent class, health or having a mask, and `stratify`."""
    key = "label" if design.target else "healthy" if design.healthy else None
    by_subject = defaultdict(list)
    for entry, mask in entries:
        own = entry.get(key, "unknown") if key else mask is not None
        stratum = (own, *(entry.get(name) for name in design.stratify))
        by_subject[entry["subject"]].append(stratum if design.stratify else own)
    return {s: min(Counter(own).items(), key=lambda item: (-item[1], str(item[0])))[0] for s, own in by_subject.items()}


def groups_of(scans: Sequence[Scan], subjects: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """Subjects that share a value in one of the group columns, e.g. family or site."""
    groups = defaultdict(list)
    for scan in scans:
        for name in names:
            if name in scan.facts and scan.subject in subjects:
                groups[name, scan.facts[name]].append(scan.subject)
    return list(groups.values())


def given_parts(scans: Sequence[Scan], subjects: Mapping[str, Any], column: str) -> dict[str, Part]:
    """The part that a column names for each subject: train, val or test, in one of the usual spellings.

    Raises:
        CohortError: another word, none, or two parts for one subject.
    """
    parts: dict[str, Part] = {}
    for scan in scans:
        if scan.subject in subjects:
            value = scan.facts.get(column, "nothing")
            part = SPELLINGS.get(value.lower())
            if part is None:
                raise CohortError(f"{scan.name}: expected train, val or test in column '{column}', found {value}")
            if parts.setdefault(scan.subject, part) != part:
                raise CohortError(f"{scan.name}: column '{column}' puts it in {part}, but {scan.subject} is in "
                                  f"{parts[scan.subject]}; a subject belongs in one part")  # fmt: skip
    return parts


def by_bundle(entries: Sequence[tuple[Case, str | None]], design: Design) -> dict[str, list[Case]]:
    """The entries as each bundle reads them, those alone that have what it needs."""
    plain = [({key: value for key, value in entry.items() if key != "label"}, mask) for entry, mask in entries]
    return {
        "pretrain": [entry for entry, _ in plain if "healthy" in entry or not design.healthy],
        "classify": [entry for entry, _ in entries if "label" in entry],
        "segment": [entry | {"label": mask} for entry, mask in plain if mask],
    }


def by_section(entries: Sequence[Case], parts: Mapping[str, Part]) -> dict[str, list[Case]]:
    """Entries by section; those of a fold are in `training`, with a `fold`."""
    lists: dict[str, list[Case]] = {section: [] for section in SECTIONS}
    for entry in entries:
        part = parts[entry["subject"]]
        if isinstance(part, int):
            lists["training"].append(entry | {"fold": part})
        else:
            lists[part].append(entry)
    return {section: cases for section, cases in lists.items() if cases or section == "training"}


def label_names(numbers: Mapping[str, int]) -> dict[str, str]:
    """Which values of the target each class number stands for, as the Decathlon's `labels`."""
    return {
        str(n): "|".join(value for value, number in numbers.items() if number == n) for n in sorted({*numbers.values()})
    }


def mask_names(mask: str | None) -> dict[str, str]:
    """Names of a mask's first two classes, by the `label` entity that it was chosen by; one letter is no name."""
    named = re.search(r"(?:^|_)label-([A-Za-z][A-Za-z0-9]+)", mask or "")
    return {"0": "background", "1": named[1] if named else "class 1"}


def reasons(left_out: Sequence[LeftOut], shown: int = 5) -> str:
    """Why scans are left out, the most frequent reason first, with a few names each."""
    names = defaultdict(list)
    for item in left_out:
        names[item["reason"]].append(item["subject"])
    lines = []
    for reason, who in sorted(names.items(), key=lambda item: -len(item[1])):
        listed = ", ".join(who[:shown]) + (f" and {len(who) - shown} more" if len(who) > shown else "")
        lines.append(f"{len(who)} {reason}: {listed}")
    return "; ".join(lines) or "nothing is left out"


def write_datalists(built: Built, folder: Path, settings: Mapping[str, Any], overwrite: bool) -> list[Path]:
    """Write `<bundle>.json` for each bundle; a list that is there already and differs is not replaced unasked.

    Raises:
        CohortError: when it would be.
    """
    contents = {}
    for name, lists in built.datalists.items():
        content = {"built": dict(settings)} | lists
        contents[folder / f"{name}.json"] = json_text(content | {"left_out": built.left_out})
    for path, text in contents.items():
        if not overwrite and path.exists() and path.read_text() != text:
            raise CohortError(f"{path} is there already and would change; choose another --output, or --overwrite True")
    for path, text in contents.items():
        write_whole(path, text)
    return list(contents)


def of_other_builds(folder: Path, written: Sequence[Path]) -> list[Path]:
    """Datalists in a folder that an earlier build has left beside those of this one."""
    found = []
    for path in sorted({*folder.glob("*.json")} - {*written}):
        with suppress(CohortError):
            content = read_json(path)
            found += [path] if isinstance(content, dict) and "built" in content else []
    return found
