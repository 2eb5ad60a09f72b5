"""What the tables of a BIDS folder say of its subjects and sessions."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from custom.data.case import CohortError
from sa_swin.cohort.bids_files import Session
from sa_swin.cohort.table import Facts, read_table


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
