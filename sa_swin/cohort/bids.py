"""A BIDS folder as scans: images by suffix and entities, channels matched within a session, masks from derivatives.

Of the files with the suffix that is asked for, those are left out, and told, that lie where BIDS has no raw images,
that `.bidsignore` names, or whose names say more than was asked for: a contrast agent, a space, a part.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from custom.data.bids_names import NOT_RAW, BidsFile, ignored, misplaced, parse_name
from custom.data.case import CohortError
from custom.data.folders import files_below, stem_of
from sa_swin.cohort.table import Facts, read_table

RUNS = ("all", "first", "last")
IDENTITY = ("sub", "ses", "run")
VARIANTS = ("acq", "rec")  # another protocol or reconstruction of the same contrast: taken where it is the only one
DERIVED = ("label", "desc", "space", "res", "den", "atlas", "seg", "mod")  # what a derivative's name says of itself
NATIVE = ("orig", "native", "individual", "scanner")  # spaces that are the image's own

Session = tuple[str, str | None]


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
    """Files with names of BIDS below a folder, outside of hidden folders and of those that hold no raw images.

    Their paths are relative to `root` where the folder is inside it, by whatever name, else absolute.
    """
    place = relative_to(folder, root)
    found = files_below(folder, lambda name: name not in NOT_RAW and name[0] != ".")
    for path in sorted(found, key=_files_first):
        file = parse_name(os.path.normpath(os.path.join(place, path)))
        if file is not None and not os.path.basename(path).startswith("."):
            yield file


def _files_first(path: str) -> list[tuple[bool, str]]:
    """Order in which a folder's own files stand before those of its folders."""
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def relative_to(folder: Path, root: Path) -> str:
    """A folder's path from a root that it is in, by its own name or where links lead; else its absolute path."""
    for named in (os.path.abspath, os.path.realpath):
        if Path(named(folder)).is_relative_to(named(root)):
            return os.path.relpath(named(folder), named(root))
    return os.path.abspath(folder)


def raw_files(root: Path) -> tuple[list[BidsFile], dict[BidsFile, str]]:
    """A dataset's files that are where BIDS has raw images, and the reason for each other one."""
    is_ignored = ignored(root)
    placed, others = [], {}
    for file in nifti_files(root, root):
        reason = "in .bidsignore" if is_ignored(file.path) else misplaced(file)
        if reason is None:
            placed.append(file)
        else:
            others[file] = reason
    return placed, others


def named(files: Iterable[BidsFile], choice: str) -> dict[Session, list[BidsFile]]:
    """The files that have a choice's suffix and entities, whatever else their names say, by subject and session."""
    suffix, entities = parse_choice(choice)
    found = defaultdict(list)
    for file in files:
        if file.suffix == suffix and entities.items() <= file.entities.items():
            found[file.session].append(file)
    return found


def chosen(files: Iterable[BidsFile], choice: str) -> tuple[dict[Session, list[BidsFile]], dict[BidsFile, str]]:
    """The images that a choice means, by subject and session, and why others of its suffix are not meant.

    What a name says beyond the choice must be no more than `VARIANTS`, and the same for all that are taken: nothing,
    else the only variant there is.
    """
    asked = parse_choice(choice)[1]
    found, others = defaultdict(list), {}
    for session, own in named(files, choice).items():
        variants = defaultdict(list)
        for file in own:
            further = {k: v for k, v in file.entities.items() if k not in IDENTITY and k not in asked}
            further.pop("part", None) if further.get("part") == "mag" else None
            text = "_".join(f"{key}-{value}" for key, value in further.items())
            if set(further) <= set(VARIANTS):
                variants[text].append(file)
            else:
                others[file] = f"{text}_{choice}, which {choice} does not ask for"
        taken = "" if "" in variants else next(iter(variants)) if len(variants) == 1 else None
        for text, same in variants.items():
            if text == taken:
                found[session] += same
            elif taken is not None:
                others |= dict.fromkeys(same, f"{text}_{choice}, beside one without {text}")
            else:
                ways = " or ".join(f"{way}_{choice}" for way in sorted(variants))
                others |= dict.fromkeys(same, f"one of several {choice}; name {ways}")
    return found, others


def without_twins(
    files: Sequence[BidsFile], elsewhere: Mapping[BidsFile, str]
) -> tuple[list[BidsFile], dict[BidsFile, str]]:
    """Files of which none is another's `.nii` beside its `.nii.gz`, and the others with the reason."""
    by_stem = {stem_of(file.path): file for file in sorted(files, key=lambda file: file.path)}  # .nii.gz comes last
    twins = {file: f"the same scan as {by_stem[stem_of(file.path)].path}; remove one of the two" for file in files
             if by_stem[stem_of(file.path)] != file}  # fmt: skip
    return [file for file in files if file not in twins], {**elsewhere, **twins}


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
    files, elsewhere = without_twins(*raw_files(root))
    suffixes = {parse_choice(channel)[0] for channel in channels}
    left_out = [{"subject": f.path, "reason": why} for f, why in elsewhere.items() if f.suffix in suffixes]
    candidates, taken, others = [], set(), {}
    for channel in channels:
        found, not_meant = chosen(files, channel)
        candidates.append(found)
        taken.update(file for own in found.values() for file in own)
        others |= not_meant
        if not found:
            raise CohortError(f"{root} has no {channel} image; {_there(files, not_meant, left_out)}")
    left_out += [{"subject": file.path, "reason": why} for file, why in others.items() if file not in taken]
    masks = named(mask_files(root, files, derivative), mask) if mask else {}
    keys = sorted({file.session for file in files}, key=lambda key: (key[0], key[1] or ""))
    facts = scan_facts(root, keys)
    sessions = Counter(subject for subject, _ in keys)
    scans = []
    for key in keys:
        subject, session = f"sub-{key[0]}", key[1]
        groups, reason = match_channels([found.get(key, []) for found in candidates], channels, runs)
        if reason:
            left_out.append({"subject": Scan(subject, (), session).name, "reason": reason})
        own_masks = masks.get(key) or (masks.get((key[0], None)) if sessions[key[0]] == 1 else None) or []
        for group in groups:
            found, reason = match_mask(group, own_masks, mask)
            run = group[0].entities.get("run")
            scan = Scan(subject, tuple(f.path for f in group), session, run, found, facts[key])
            scans.append(scan)
            if reason:
                left_out.append({"subject": scan.name, "reason": reason})
    return scans, left_out


def _there(files: Sequence[BidsFile], not_meant: Mapping[BidsFile, str], left_out: Sequence[LeftOut]) -> str:
    """What a folder has in place of the images that were asked for."""
    if not_meant:
        file, why = next(iter(not_meant.items()))
        return f"{len(not_meant)} file(s) are others, such as {file.path}: {why}"
    there = Counter(file.suffix for file in files)
    listed = ", ".join(f"{suffix} ({n})" for suffix, n in there.most_common()) or "no file with a name of BIDS"
    lost = f"; {len(left_out)} such file(s) are {left_out[0]['reason']}: {left_out[0]['subject']}" if left_out else ""
    return f"there are {listed}{lost}"


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
    alone = len(files) == 1 and (run is None or files[0].entities.get("run") is None)
    return same or (list(files) if alone else [])


def _run_number(file: BidsFile) -> tuple[int, str]:
    run = file.entities.get("run", "0")
    return (int(run) if run.isdigit() else 0, file.path)


def match_mask(
    images: Sequence[BidsFile], masks: Sequence[BidsFile], choice: str | None
) -> tuple[str | None, str | None]:
    """The mask of a case, and why there is none.

    Of the masks that contradict no entity of one of the channels, and lie in its space unless the choice names another,
    the one that shares the most, then the one whose name says the least beyond the choice.
    """
    if not choice:
        return None, None
    asked = parse_choice(choice)[1]
    fitting = [mask for mask in masks if any(_agrees(mask, image) for image in images)]
    here = [mask for mask in fitting if "space" in asked or any(_in_space_of(mask, image) for image in images)]
    if fitting and not here:
        spaces = ", ".join(sorted({f"space-{mask.entities['space']}" for mask in fitting}))
        return None, f"its {choice} is in another space ({spaces}), not on the image's grid"
    if not here:
        return None, f"no {choice}"

    def rank(mask: BidsFile) -> tuple[int, int]:
        shared = [key for key in mask.entities if key not in DERIVED]
        further = [key for key in mask.entities if key in DERIVED and key not in asked and key not in ("space", "mod")]
        return -len(shared), len(further)

    best = [mask for mask in here if rank(mask) == min(map(rank, here))]
    if len(best) > 1:
        listed = ", ".join(mask.path for mask in best)
        return (
            None,
            f"{len(best)} files are its {choice}: {listed}; name an entity, as in desc-x_{choice}, or --derivative",
        )
    return best[0].path, None


def _agrees(mask: BidsFile, image: BidsFile) -> bool:
    """Whether no entity of a mask speaks of another image."""
    own = {key: value for key, value in mask.entities.items() if key not in DERIVED}
    modality = mask.entities.get("mod", image.suffix)
    return modality == image.suffix and all(image.entities.get(key) == value for key, value in own.items())


def _in_space_of(mask: BidsFile, image: BidsFile) -> bool:
    space, own = mask.entities.get("space"), image.entities.get("space")
    return space == own or (own is None and (space in NATIVE or space == image.suffix))


def mask_files(root: Path, files: Sequence[BidsFile], derivative: str | None) -> list[BidsFile]:
    """Where masks may be: among the raw files and in all pipelines, or in the one that is named.

    Raises:
        CohortError: no such pipeline.
    """
    base = root / "derivatives"
    if derivative is None:
        is_ignored = ignored(root)
        found = nifti_files(root, base) if base.is_dir() else ()
        return [*files, *(file for file in found if not is_ignored(file.path))]
    inside = base / derivative
    folder = inside if inside.is_dir() else Path(derivative)
    if not folder.is_dir():
        raise CohortError(f"no derivatives at {inside}; give the masks' pipeline with --derivative")
    return list(nifti_files(root, folder))


def scan_facts(root: Path, sessions: Sequence[Session]) -> dict[Session, Facts]:
    """What `participants.tsv` and the subjects' `sessions.tsv`, which go before it, say of each session.

    Ids are found with and without `sub-`, separators and leading zeros, where that leaves no doubt.

    Raises:
        CohortError: no `participant_id`, an id in two rows, or a table that names none of the subjects.
    """
    by_subject = defaultdict(list)
    for subject, session in sessions:
        by_subject[subject].append(session)
    table = subject_facts(root)
    found = matched(table, list(by_subject))
    if table and not found:
        raise CohortError(
            f"{root / 'participants.tsv'} has no row of the {len(by_subject)} subjects: its ids are like "
            f"{next(iter(table))}, the folders like sub-{next(iter(by_subject))}"
        )
    facts = {}
    for subject, own in by_subject.items():
        path = root / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
        of_sessions = matched(_facts_by(path, "session_id"), [name for name in own if name]) if path.exists() else {}
        facts |= {(subject, name): found.get(subject, {}) | of_sessions.get(name or "", {}) for name in own}
    return facts


def matched(table: Mapping[str, Facts], names: Sequence[str]) -> dict[str, Facts]:
    """Rows of a table by the names that they mean: the same, else the same when written plainly and no other is."""
    found = {name: table[name] for name in names if name in table}
    rows, wanted = _by_plain(key for key in table if key not in found), _by_plain(n for n in names if n not in found)
    doubtful = set(_by_plain(found))
    for plain, own in wanted.items():
        if len(own) == 1 and len(rows.get(plain, [])) == 1 and plain not in doubtful:
            found[own[0]] = table[rows[plain][0]]
    return found


def _by_plain(names: Iterable[str]) -> dict[str, list[str]]:
    plain = defaultdict(list)
    for name in names:
        plain[plain_id(name)].append(name)
    return plain


def plain_id(name: str) -> str:
    """An id as spreadsheets and BIDS both leave it: `sub-001`, `001`, `1.0` and `1` are all `1`, `S_01` is `s1`."""
    text = re.sub(r"^(sub|ses)(-|_|(?=\d))", "", name.strip().lower())
    text = re.sub(r"[^a-z0-9]", "", re.sub(r"\.0+$", "", text))
    return re.sub(r"(?<!\d)0+(?=\d)", "", text)


def subject_facts(root: Path) -> dict[str, Facts]:
    """`participants.tsv` by subject without `sub-`, where there is one.

    Raises:
        CohortError: no `participant_id`, or a subject in two rows.
    """
    path = root / "participants.tsv"
    return _facts_by(path, "participant_id") if path.exists() else {}


def _facts_by(path: Path, key: str) -> dict[str, Facts]:
    found: dict[str, Facts] = {}
    for line, row in enumerate(read_table(path), 2):
        if not row:
            continue
        column = next((name for name in row if name.lower() == key), None)
        if column is None:
            raise CohortError(f"{path}, line {line}: no {key}; there are {', '.join(row)}")
        written = row.pop(column)
        name = re.sub(r"^(sub|ses)-", "", written)
        if found.get(name, row) != row:
            raise CohortError(f"{path}, line {line}: {written} has a row already; one row per {key}")
        found[name] = row
    return found
