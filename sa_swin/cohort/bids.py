"""A BIDS folder as scans: images by suffix and entities, channels matched within a session, masks from derivatives.

File names are taken apart as the specification has them (BIDS 1.9, "Filesystem structure"):
`<key>-<value>_..._<suffix><extension>`.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from custom.data.case import CohortError
from sa_swin.cohort.table import Facts, read_table

EXTENSIONS = (".nii.gz", ".nii")
RUNS = ("all", "first", "last")
DERIVED = ("label", "desc", "space", "res", "den", "atlas", "seg")  # entities that a derivative has of its own


@dataclass(frozen=True)
class BidsFile:
    """A file of a BIDS folder: its path relative to that folder, and what its name says."""

    path: str
    suffix: str
    entities: Mapping[str, str] = field(hash=False)

    @property
    def session(self) -> tuple[str, str | None]:
        """Subject and session, without `sub-` and `ses-`."""
        return self.entities["sub"], self.entities.get("ses")


@dataclass(frozen=True)
class Scan:
    """What becomes one case: files of one subject and session, and what the tables say of it.

    Args:
        subject: id, as the table has it or with `sub-`.
        images: path of each channel.
        session, run: where there are several.
        mask: path, or None.
        facts: by column.
    """

    subject: str
    images: tuple[str, ...]
    session: str | None = None
    run: str | None = None
    mask: str | None = None
    facts: Facts = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """Subject and session, for reports."""
        return " ".join(part for part in (self.subject, self.session and f"ses-{self.session}") if part)


LeftOut = dict[str, str]
"""`subject` and `reason` of what did not become a case."""


def parse_name(path: str) -> BidsFile | None:
    """What a NIfTI file's name says, or None for a name that is not of BIDS."""
    name = os.path.basename(path)
    for extension in EXTENSIONS:
        if name.endswith(extension):
            *pairs, suffix = name.removesuffix(extension).split("_")
            entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
            if entities.get("run", "").isdigit():
                entities["run"] = str(int(entities["run"]))  # run-1 and run-01 are the same
            whole = len(entities) == len(pairs) and "sub" in entities and "-" not in suffix
            return BidsFile(path, suffix, entities) if whole else None
    return None


def parse_choice(text: str) -> tuple[str, dict[str, str]]:
    """Suffix and entities of a choice such as `T1w`, `acq-3d_T1w` or `label-lesion_mask`.

    Raises:
        CohortError: when it is none.
    """
    *pairs, suffix = text.split("_")
    if not re.fullmatch(r"[A-Za-z0-9]+", suffix) or not all("-" in pair for pair in pairs):
        raise CohortError(f"expected a BIDS suffix, with entities if need be, such as T1w or acq-3d_T1w; got {text!r}")
    return suffix, dict(pair.split("-", 1) for pair in pairs)


def nifti_files(root: Path, folder: Path) -> Iterator[BidsFile]:
    """Files with names of BIDS below a folder of the dataset, outside its own `derivatives` and hidden folders."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in ("derivatives", "sourcedata") and name[0] != ".")
        relative = os.path.relpath(place, root) if Path(place).is_relative_to(root) else place
        for name in sorted(names):
            if (file := parse_name(os.path.normpath(os.path.join(relative, name)))) is not None:
                yield file


def chosen(files: Sequence[BidsFile], choice: str) -> dict[tuple[str, str | None], list[BidsFile]]:
    """The files that a choice names, by subject and session."""
    suffix, entities = parse_choice(choice)
    found = defaultdict(list)
    for file in files:
        if file.suffix == suffix and entities.items() <= file.entities.items():
            found[file.session].append(file)
    return found


def find_scans(
    root: Path, channels: Sequence[str], mask: str | None, derivative: str | None, runs: str = "all"
) -> tuple[list[Scan], list[LeftOut]]:
    """The scans of a BIDS folder, and what could not become one.

    Args:
        root: the BIDS folder.
        channels: choices such as `T1w` or `acq-3d_T1w`, one per channel; all of one session, and run where they have
            runs.
        mask: choice among the derivatives, such as `label-lesion_mask`, or None.
        derivative: pipeline below `derivatives`, or a folder; None looks through all pipelines.
        runs: of repeated runs take `all` (each a case), the `first` or the `last`.

    Raises:
        CohortError: no such folder, no image of that choice, or a wrong table.
    """
    if runs not in RUNS:
        raise CohortError(f"runs must be one of {', '.join(RUNS)}; got {runs!r}")
    if not root.is_dir():
        raise CohortError(f"no BIDS folder at {root}")
    files = list(nifti_files(root, root))
    candidates = [chosen(files, channel) for channel in channels]
    for channel, found in zip(channels, candidates, strict=True):
        if not found:
            there = Counter(file.suffix for file in files)
            listed = ", ".join(f"{suffix} ({n})" for suffix, n in there.most_common()) or "no file with a name of BIDS"
            raise CohortError(f"{root} has no {channel} image; there are {listed}")
    masks = chosen(list(_derivatives(root, derivative)), mask) if mask else {}
    subjects = subject_facts(root)
    sessions = {}
    scans, left_out = [], []
    for key in sorted({file.session for file in files}, key=lambda key: (key[0], key[1] or "")):
        subject, session = f"sub-{key[0]}", key[1]
        if subject not in sessions:
            sessions[subject] = session_facts(root / subject / f"{subject}_sessions.tsv")
        facts = subjects.get(subject, {}) | sessions[subject].get(session, {})
        groups, reason = match_channels([found.get(key, []) for found in candidates], channels, runs)
        if reason:
            left_out.append({"subject": Scan(subject, (), session).name, "reason": reason})
        for group in groups:
            found, reason = match_mask(group[0], masks.get(key, []), mask)
            scan = Scan(subject, tuple(f.path for f in group), session, group[0].entities.get("run"), found, facts)
            scans.append(scan)
            if reason:
                left_out.append({"subject": scan.name, "reason": reason})
    return scans, left_out


def match_channels(
    candidates: Sequence[list[BidsFile]], channels: Sequence[str], runs: str
) -> tuple[list[tuple[BidsFile, ...]], str | None]:
    """A session's images put together to cases, and why there is none or not all."""
    for channel, found in zip(channels, candidates, strict=True):
        if not found:
            return [], f"no {channel} image"
    if len(candidates) == 1:
        groups = [(file,) for file in candidates[0]]
    else:
        groups = []
        for first in candidates[0]:
            rest = [_of_run(found, first.entities.get("run")) for found in candidates[1:]]
            if all(len(found) == 1 for found in rest):
                groups.append((first, *(found[0] for found in rest)))
        if not groups or (len(groups) < len(candidates[0]) and runs == "all"):
            counts = " and ".join(f"{len(found)} {ch}" for ch, found in zip(channels, candidates, strict=True))
            return groups, f"channels do not match by run: {counts} image(s); choose by entity, such as acq-3d_T1w"
    groups.sort(key=lambda group: _run_number(group[0]))
    return {"all": groups, "first": groups[:1], "last": groups[-1:]}[runs], None


def _of_run(files: Sequence[BidsFile], run: str | None) -> list[BidsFile]:
    same = [file for file in files if file.entities.get("run") == run]
    return same or (list(files) if len(files) == 1 else [])


def _run_number(file: BidsFile) -> tuple[int, str]:
    run = file.entities.get("run", "0")
    return (int(run) if run.isdigit() else 0, file.path)


def match_mask(image: BidsFile, masks: Sequence[BidsFile], choice: str | None) -> tuple[str | None, str | None]:
    """An image's mask, and why there is none: of the masks that contradict no entity, the one sharing the most."""
    fitting = defaultdict(list)
    for mask in masks:
        own = {key: value for key, value in mask.entities.items() if key not in DERIVED}
        if all(image.entities.get(key) == value for key, value in own.items()):
            fitting[len(own)].append(mask)
    if not choice:
        return None, None
    if not fitting:
        return None, f"no {choice}"
    best = fitting[max(fitting)]
    if len(best) > 1:
        return None, f"{len(best)} files are its {choice}: {', '.join(mask.path for mask in best)}; name --derivative"
    return best[0].path, None


def _derivatives(root: Path, derivative: str | None) -> Iterator[BidsFile]:
    base = root / "derivatives"
    if derivative is None:
        folders = sorted(base.iterdir()) if base.is_dir() else []
    else:
        inside = base / derivative
        folders = [inside if inside.is_dir() else Path(derivative)]
    if not folders or not all(folder.is_dir() or derivative is None for folder in folders):
        raise CohortError(f"no derivatives at {base / (derivative or '')}; give the masks' pipeline with --derivative")
    for folder in folders:
        if folder.is_dir():
            yield from nifti_files(root, folder)


def subject_facts(root: Path) -> dict[str, Facts]:
    """`participants.tsv` by subject, where there is one.

    Raises:
        CohortError: no `participant_id`, or a subject in two rows.
    """
    path = root / "participants.tsv"
    return _facts_by(path, "participant_id", "sub-") if path.exists() else {}


def session_facts(path: Path) -> dict[str | None, Facts]:
    """A subject's `sessions.tsv` by session without `ses-`, where there is one; it goes before `participants.tsv`."""
    if not path.exists():
        return {}
    return {name.removeprefix("ses-"): facts for name, facts in _facts_by(path, "session_id", "ses-").items()}


def _facts_by(path: Path, key: str, prefix: str) -> dict[str, Facts]:
    found: dict[str, Facts] = {}
    for line, row in enumerate(read_table(path), 2):
        if key not in row:
            raise CohortError(f"{path}, line {line}: no {key}")
        name = prefix + row.pop(key).removeprefix(prefix)
        if name in found:
            raise CohortError(f"{path}, line {line}: {name} has a row already; one row per {key}")
        found[name] = row
    return found
