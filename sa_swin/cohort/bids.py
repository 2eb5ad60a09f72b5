"""A BIDS folder as scans: images by suffix and entities, channels matched within a session, masks from derivatives.

Of the files with the suffix that is asked for, those are left out, and told, that lie where BIDS has no raw images,
that `.bidsignore` names, or whose names say more than was asked for: a contrast agent, a space, a part.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from custom.data.bids_names import BidsFile, ignored, misplaced
from custom.data.case import CohortError
from custom.data.folders import stem_of
from sa_swin.cohort.bids_facts import scan_facts
from sa_swin.cohort.bids_files import Session, nifti_files, parse_choice
from sa_swin.cohort.bids_masks import mask_files, match_mask
from sa_swin.cohort.table import Facts

RUNS = ("all", "first", "last")
IDENTITY = ("sub", "ses", "run")
VARIANTS = ("acq", "rec")  # another protocol or reconstruction of the same contrast: taken where it is the only one


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
