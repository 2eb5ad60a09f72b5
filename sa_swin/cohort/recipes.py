"""Recipes: how public data sets are laid out, as options of `sa-swin cohort build`.

Each is a file in `recipes/` that also says where the data are had, their licence, and their traps.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from custom.data.case import CohortError
from custom.data.folders import files_below
from sa_swin.cohort.bids import LeftOut, Scan
from sa_swin.cohort.bids_facts import matched
from sa_swin.cohort.table import Facts, read_table, require_columns

FOLDER = Path(__file__).with_name("recipes")
READERS = ("R1", "R2", "R3")
NO_FACTS = ("subject", "session", "run", "kind", "path")
"""Named parts of a file's place that are no columns."""


@dataclass(frozen=True)
class Recipe:
    """A data set's published layout.

    Args:
        title: what it is.
        source: where it is had.
        licence: under which terms.
        folder: what `--bids` names.
        files: regular expression of a file's place below that folder, from the start of a name. Its named parts are
            `subject` and `kind` (which `image` and `mask` choose from), `session`, `run`, `path` (for the table's
            rows), and columns of others. Files that share all of them but `kind` are one case.
        options: of `sa-swin cohort build`, unless the command line says otherwise.
        table: `file` below the folder, the `key` column, the `row` of a case by its named parts (the subject's, unless
            given), and `majority`: findings of which three readers' columns (`R1:ICH`, ...) become one.
        everyone: columns that have one value for all.
        traps: what goes wrong when nobody looks.
        unverified: what nobody has checked.
    """

    title: str
    source: str
    licence: str
    folder: str
    files: str
    options: Mapping[str, str]
    table: Mapping[str, Any] = field(default_factory=dict)
    everyone: Facts = field(default_factory=dict)
    traps: Sequence[str] = ()
    unverified: Sequence[str] = ()

    def notes(self) -> str:
        """What a user should have read, a line each."""
        lines = [f"{self.title}; had from {self.source}; licence: {self.licence}"]
        lines += [f"trap: {trap}" for trap in self.traps] + [f"not verified: {what}" for what in self.unverified]
        return "\n".join(lines)


def names() -> list[str]:
    """The recipes that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_recipe(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        CohortError: there is none.
    """
    if name not in names():
        raise CohortError(f"no recipe {name!r}; there are {', '.join(names())}")
    return Recipe(**yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


def recipe_scans(
    root: Path, recipe: Recipe, channels: Sequence[str], mask: str | None
) -> tuple[list[Scan], list[LeftOut], list[Facts]]:
    """The scans of a data set, what could not become one, and all rows of its table.

    Args:
        root: the folder.
        recipe: its layout.
        channels: kinds of image, one per channel.
        mask: kind of the masks, or None.

    Raises:
        CohortError: no such folder, or no image of the first kind.
    """
    cases = found_cases(root, recipe)
    if not any(channels[0] in kinds for kinds in cases.values()):
        there = ", ".join(sorted({kind for kinds in cases.values() for kind in kinds})) or "no file that it describes"
        raise CohortError(f"{root} has no {channels[0]} image of this recipe, but {there}; it expects {recipe.folder}")
    rows, left_out = table_rows(root, recipe.table)
    by_row = matched(rows, list(dict.fromkeys(_row(recipe, case) for case in cases)))
    scans = []
    for case, kinds in cases.items():
        parts = dict(case)
        columns = {name: value for name, value in parts.items() if name not in NO_FACTS}
        facts = {**by_row.get(_row(recipe, case), {}), **recipe.everyone, **columns}
        subject = parts["subject"].replace("/", "-")
        who = Scan(subject, (), parts.get("session"))
        images, reason = _channels(kinds, channels)
        own = kinds.get(mask or "", [])
        found = own[0] if len(own) == len(images) == 1 else None
        scans += [Scan(subject, image, who.session, parts.get("run"), found, facts) for image in images]
        if reason or (mask and not found):
            left_out.append({"subject": who.name, "reason": reason or f"no {mask}, or not one for one image"})
    return scans, left_out, list(rows.values())


Parts = tuple[tuple[str, str], ...]
"""Named parts of a case's files, and their values."""


def found_cases(root: Path, recipe: Recipe) -> dict[Parts, dict[str, list[str]]]:
    """Files by case and kind, as the recipe's expression finds them.

    Raises:
        CohortError: no such folder.
    """
    if not root.is_dir():
        raise CohortError(f"no folder at {root}; this recipe expects {recipe.folder}")
    pattern = re.compile(rf"(?:^|/){recipe.files}$")
    cases: dict[Parts, dict[str, list[str]]] = {}
    for place in sorted(files_below(root), key=lambda place: place.split("/")):
        if (match := pattern.search(place)) and not PurePosixPath(place).name.startswith("."):
            parts = {name: value for name, value in match.groupdict().items() if value}
            kind = parts.pop("kind")
            cases.setdefault(tuple(parts.items()), defaultdict(list))[kind].append(place)
    return cases


def _row(recipe: Recipe, case: Parts) -> str:
    """What names the row of a case in the table."""
    return recipe.table.get("row", "{subject}").format(**dict(case))


def _channels(kinds: Mapping[str, list[str]], channels: Sequence[str]) -> tuple[list[tuple[str, ...]], str]:
    """A case's images put together, and why there is none."""
    found = [kinds.get(channel, []) for channel in channels]
    for channel, files in zip(channels, found, strict=True):
        if not files:
            return [], f"no {channel} image"
        if len(channels) > 1 and len(files) > 1:
            return [], f"{len(files)} {channel} images, which do not match the other channels one for one"
    return ([(file,) for file in found[0]] if len(channels) == 1 else [tuple(files[0] for files in found)]), ""


def table_rows(root: Path, table: Mapping[str, Any]) -> tuple[dict[str, Facts], list[LeftOut]]:
    """The rows of a recipe's table by their key, where it is there; a key with rows that differ has none.

    Raises:
        CohortError: the table lacks its key.
    """
    if not table or not (path := root / table["file"]).is_file():
        return {}, []
    rows = [row for row in read_table(path) if row]
    require_columns([table["key"]], rows, str(path))
    by_key: dict[str, list[Facts]] = defaultdict(list)
    for row in rows:
        if table["key"] in row:
            key = re.sub(r"^sub-", "", row[table["key"]])
            own = {name: value for name, value in row.items() if name != table["key"]}
            own |= {finding: _majority(own, finding) for finding in table.get("majority", ())}
            by_key[key] += [own] if own not in by_key[key] else []
    why = f"several rows of {path.name} that differ, so none is taken"
    doubtful = [{"subject": key, "reason": why} for key, own in by_key.items() if len(own) > 1]
    return {key: own[0] for key, own in by_key.items() if len(own) == 1}, doubtful


def _majority(row: Facts, finding: str) -> str:
    """`1` where most readers saw a finding, else `0`."""
    return str(int(sum(row.get(f"{reader}:{finding}") == "1" for reader in READERS) * 2 > len(READERS)))
