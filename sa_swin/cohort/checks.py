"""A datalist checked before any training: every file read once, cases compared, one report by file."""

import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from custom.data.case import Case, CohortError, image_paths, subject_from, subject_of
from custom.data.contents import ContentCache
from custom.data.datalist import LABELS, SECTIONS, expect, read_lists
from custom.data.headers import Finding
from sa_swin.cohort.voxels import Checked, Expected, check_case


@dataclass(frozen=True)
class Entry:
    """A case of a datalist with its place.

    Args:
        part: section, or `fold N` in a list without a validation list.
        section, index: where it stands in the file.
        case: the entry, with absolute paths.
    """

    part: str
    section: str
    index: int
    case: Case = field(compare=False)


@dataclass
class Report:
    """What checking a datalist found.

    Args:
        datalist: file.
        entries: its cases.
        label: what its cases carry.
        findings: by entry, each once; those of the list as a whole are under None.
    """

    datalist: Path
    label: str
    entries: list[Entry]
    findings: dict[Entry | None, list[Finding]]

    def unique(self) -> list[Finding]:
        """All findings, each once, by file."""
        return sorted(dict.fromkeys(f for own in self.findings.values() for f in own), key=lambda f: (f.file, f.kind))

    def errors(self) -> list[Finding]:
        """The findings that are errors."""
        return [finding for finding in self.unique() if finding.severity == "error"]

    def balance(self) -> dict[str, Counter[str]]:
        """Number of subjects by part and class."""
        counts: dict[str, dict[str, str]] = defaultdict(dict)
        for entry in self.entries:
            counts[entry.part][subject_of(entry.case)] = class_of(entry.case, self.label)
        return {part: Counter(classes.values()) for part, classes in counts.items()}


def read_entries(datalist: Path, dataset_dir: Path) -> list[Entry]:
    """All cases of a datalist, with absolute paths."""
    lists = read_lists(datalist)
    folds = not lists.get("validation")
    entries = []
    for section in SECTIONS:
        for index, raw in enumerate(lists.get(section, [])):
            case = dict(raw)
            paths = [str(dataset_dir / path) for path in image_paths(raw)]
            if paths:
                case["image"] = paths if isinstance(raw["image"], list) else paths[0]
                case.setdefault("subject", subject_from(image_paths(raw)[0]))
            if isinstance(raw.get("label"), str):
                case["label"] = str(dataset_dir / raw["label"])
            fold = folds and section == "training" and "fold" in raw
            entries.append(Entry(f"fold {raw['fold']}" if fold else section, section, index, case))
    return entries


def expected_of(
    entries: Sequence[Entry], label: str | None, in_channels: int | None, num_classes: int | None
) -> Expected:
    """What is said, or else what most cases have."""
    cases = [entry.case for entry in entries]
    if in_channels is None:
        in_channels = Counter(len(image_paths(case)) for case in cases).most_common(1)[0][0]
    return Expected(_label_kind(cases) if label is None else label, in_channels, num_classes)


def _label_kind(cases: Sequence[Case]) -> str:
    kinds = Counter(type(case["label"]) for case in cases if case.get("label") is not None)
    if kinds:
        return "mask" if kinds[str] > kinds[int] else "class"
    return "healthy" if any("healthy" in case for case in cases) else "none"


def check_datalist(
    datalist: Path,
    dataset_dir: Path,
    label: str | None = None,
    in_channels: int | None = None,
    num_classes: int | None = None,
    workers: int = 1,
    allow_outside: bool = False,
    modality: str | None = None,
) -> Report:
    """Read every file of a datalist, and compare its cases.

    Args:
        datalist: JSON.
        dataset_dir: what relative paths are relative to.
        label: what a case carries, one of `LABELS`; None takes what most cases carry.
        in_channels: files per case; None takes what most cases have.
        num_classes: of class labels and masks; None takes any.
        workers: processes.
        allow_outside: read files outside of `dataset_dir`, too, where links and `..` may lead.
        modality: `MR` or `CT`, of all images; None takes it from each file's name, where that tells.

    Raises:
        CohortError: no datalist, or no case in it.
    """
    if label is not None:
        expect(label, LABELS, "label")
    if modality is not None:
        expect(modality, ("MR", "CT"), "modality")
    entries = read_entries(datalist, dataset_dir)
    if not entries:
        raise CohortError(f"{datalist} has no cases in {', '.join(SECTIONS)}")
    expected = expected_of(entries, label, in_channels, num_classes)
    expected = replace(expected, root=None if allow_outside else dataset_dir, modality=modality)
    checked = dict(zip(entries, _check_all([entry.case for entry in entries], expected, workers), strict=True))
    cache = ContentCache(datalist.parent)
    for result in checked.values():
        for path, hashes in result.contents.items():
            cache.put(path, hashes)
    cache.save()
    findings: dict[Entry | None, list[Finding]] = defaultdict(list)
    for entry, result in checked.items():
        findings[entry] += result.findings
    for compare in (repeated_findings, split_findings, site_findings):
        for entry, finding in compare(entries):
            findings[entry].append(finding)
    for entry, finding in duplicate_findings({entry: result.contents for entry, result in checked.items()}):
        findings[entry].append(finding)
    report = Report(datalist, expected.label, entries, findings)
    findings[None] += balance_findings(report, expected)
    return report


def _check_all(cases: Sequence[Case], expected: Expected, workers: int) -> list[Checked]:
    work = partial(check_case, expected=expected)
    bar = partial(tqdm, desc="check", total=len(cases), unit="case", disable=None)
    if workers == 1:
        return list(bar(map(work, cases)))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(bar(pool.map(work, cases, chunksize=max(1, min(16, len(cases) // (4 * workers))))))


EntryFindings = Iterator[tuple[Entry, Finding]]


def repeated_findings(entries: Sequence[Entry]) -> EntryFindings:
    """Cases that are listed twice, and files that two subjects have; runs of one subject may share a channel."""
    first: dict[str, Entry] = {}
    for entry in entries:
        for path in image_paths(entry.case):
            earlier = first.setdefault(path, entry)
            if earlier is entry:
                continue
            if image_paths(earlier.case) == image_paths(entry.case) or _subject(earlier) != _subject(entry):
                places = f"{earlier.part} (subject {_subject(earlier)}) and {entry.part} (subject {_subject(entry)})"
                yield entry, Finding(path, "repeated", f"listed twice, in {places}; list it once")


def _subject(entry: Entry) -> str:
    return subject_of(entry.case)


def split_findings(entries: Sequence[Entry]) -> EntryFindings:
    """Subjects on two sides of a split; the finding is with the entries that lie further from the test."""
    parts = defaultdict(set)
    for entry in entries:
        parts[subject_of(entry.case)].add(entry.part)
    rank = {part: i for i, part in enumerate(sorted({e.part for e in entries}, key=_distance_from_training))}
    for entry in entries:
        own = parts[subject_of(entry.case)]
        others = sorted((part for part in own if rank[part] > rank[entry.part]), key=rank.get)
        if others and (paths := image_paths(entry.case)):
            problem = (
                f"subject {subject_of(entry.case)} is in {entry.part} and in {', '.join(others)}; "
                "split by subject (sa-swin cohort build --datalist)"
            )
            yield entry, Finding(paths[0], "split", problem)


def _distance_from_training(part: str) -> tuple[int, str]:
    return (SECTIONS.index(part) if part in SECTIONS else 0, part)


def site_findings(entries: Sequence[Entry]) -> EntryFindings:
    """Subjects with scans from several sites."""
    sites = defaultdict(set)
    for entry in entries:
        if entry.case.get("site"):
            sites[subject_of(entry.case)].add(str(entry.case["site"]))
    for entry in entries:
        own = sites[subject_of(entry.case)]
        if len(own) > 1 and (paths := image_paths(entry.case)):
            problem = (
                f"subject {subject_of(entry.case)} was scanned at {', '.join(sorted(own))}; "
                "if these are several persons, give them different ids"
            )
            yield entry, Finding(paths[0], "two_sites", problem, "warning")


def duplicate_findings(contents: Mapping[Entry, Mapping[str, Sequence[str]]]) -> EntryFindings:
    """The same image under several names: of one subject, all but the first; of several, all, as nobody knows whose."""
    files = defaultdict(dict)
    for entry, own in contents.items():
        for path, hashes in own.items():
            for value in hashes:
                files[value].setdefault(path, entry)
    for same in files.values():
        subjects = {subject_of(entry.case) for entry in same.values()}
        for path, entry in list(same.items())[len(subjects) == 1 :] if len(same) > 1 else []:
            others = ", ".join(other for other in same if other != path)
            whose = "" if len(subjects) == 1 else f" of subjects {', '.join(sorted(subjects))}"
            problem = f"the same image{whose} as {others}; find out whose it is, and keep one"
            yield entry, Finding(path, "duplicate", problem)


def class_of(case: Case, label: str) -> str:
    """What a case counts as in the balance."""
    if label == "class":
        return f"class {case['label']}" if isinstance(case.get("label"), int) else "no class"
    if label == "mask":
        return "a mask" if isinstance(case.get("label"), str) else "no mask"
    return {True: "healthy", False: "not healthy"}.get(case.get("healthy"), "no label")


def balance_findings(report: Report, expected: Expected) -> list[Finding]:
    """Classes that a part of the split lacks."""
    balance = report.balance()
    classes = {name for counts in balance.values() for name in counts}
    if expected.label == "class" and expected.num_classes:
        classes = {f"class {number}" for number in range(expected.num_classes)}
    classes -= {"no class", "no mask", "no label"}
    missing = [(part, sorted(classes - set(counts))) for part, counts in balance.items()]
    return [
        Finding(str(report.datalist), "balance", f"nobody of {', '.join(names)} in {part}", "warning")
        for part, names in missing
        if names
    ]


def good_rest(report: Report) -> dict[str, Any]:
    """The datalist without the entries that have an error."""
    bad = {(e.section, e.index) for e, own in report.findings.items() if e and any(f.severity == "error" for f in own)}
    lists = read_lists(report.datalist)
    kept = {
        section: [entry for index, entry in enumerate(lists[section]) if (section, index) not in bad]
        for section in SECTIONS
        if section in lists
    }
    return lists | kept


def as_json(report: Report) -> dict[str, Any]:
    """The report for machines."""
    return {
        "datalist": str(report.datalist),
        "cases": len(report.entries),
        "subjects": {part: dict(counts) for part, counts in report.balance().items()},
        "findings": [asdict(finding) for finding in report.unique()],
    }


def as_text(report: Report, dataset_dir: Path) -> str:
    """The report for people: by file, each problem with what to do, then the classes of every part."""
    findings, by_file = report.unique(), defaultdict(list)
    for finding in findings:
        by_file[finding.file].append(f"  {finding.severity}, {finding.kind}: {finding.problem}")
    lines = []
    for file, problems in by_file.items():
        lines.append(str(Path(file).relative_to(dataset_dir)) if Path(file).is_relative_to(dataset_dir) else file)
        lines += problems
    for part, counts in report.balance().items():
        lines.append(f"{part}: " + ", ".join(f"{number} {name}" for name, number in sorted(counts.items())))
    errors = len(report.errors())
    lines.append(f"{len(report.entries)} cases, {errors} error(s), {len(findings) - errors} warning(s)")
    return "\n".join(lines)
