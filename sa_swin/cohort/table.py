"""Tables of subjects: CSV and TSV in, conditions on their columns, values to class numbers."""

import csv
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from custom.data.case import CohortError

Facts = dict[str, str]
"""What a table says of a scan or a subject, by column; what is not known is not in it."""

MISSING = ("", "n/a", "na", "nan", "none", "null")

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}


def read_table(path: Path) -> list[Facts]:
    """The rows of a table with a header: tabs in `.tsv`, else commas, semicolons or tabs.

    Raises:
        CohortError: no such file, not text, or rows longer than the header.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise CohortError(f"no table at {path}") from error
    except UnicodeDecodeError as error:
        raise CohortError(f"{path} is not UTF-8 text: {error}") from error
    lines = text.splitlines()
    header = lines[0] if lines else ""
    delimiter = "\t" if path.suffix == ".tsv" else max(",;\t", key=header.count)
    rows = []
    for number, row in enumerate(csv.DictReader(lines, delimiter=delimiter), 2):
        if None in row:
            raise CohortError(f"{path}, line {number}: more cells than the header has columns")
        cells = {name.strip(): (value or "").strip() for name, value in row.items()}
        rows.append({name: value for name, value in cells.items() if value.lower() not in MISSING})
    return rows


def columns(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Names of the columns that have a value anywhere."""
    return {name for row in rows for name in row}


def require_columns(wanted: Iterable[str], rows: Sequence[Mapping[str, Any]], place: str) -> None:
    """Refuse the name of a column that has no value in any row.

    Raises:
        CohortError: with the columns that there are.
    """
    there = columns(rows)
    for name in wanted:
        if name not in there:
            raise CohortError(
                f"{place} has no column '{name}', or no value in it; there are {', '.join(sorted(there))}"
            )


@dataclass(frozen=True)
class Condition:
    """A comparison of a column with a value: `age>=18`, `sex=F`, `site=north|south`, `diagnosis!=other`.

    Both sides are compared as numbers where both are numbers, else as text; only `=`, `==` and `!=` take text, or
    alternatives between bars. A row without a value in the column does not fulfil it.
    """

    column: str
    comparison: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Raises `CohortError` when the text is no condition."""
        match = re.fullmatch(r"\s*([^<>=!]+?)\s*(<=|>=|!=|==|=|<|>)\s*([^<>=!]+?)\s*", text)
        if not match:
            raise CohortError(f"expected a condition such as age>=18, sex=F or site=north|south, got {text!r}")
        column, comparison, value = match.groups()
        if comparison[0] in "<>" and _number(value) is None:
            raise CohortError(f"{text!r} compares with {value!r}, which is not a number")
        return cls(column, comparison, value)

    def holds(self, facts: Mapping[str, Any]) -> bool:
        """Whether a row fulfils the condition."""
        if self.column not in facts:
            return False
        found = str(facts[self.column])
        if self.comparison[0] in "<>":
            number = _number(found)
            return number is not None and _COMPARISONS[self.comparison](number, _number(self.value))
        among = any(_same(found, value.strip()) for value in self.value.split("|"))
        return among != (self.comparison == "!=")

    def __str__(self) -> str:
        return f"{self.column}{self.comparison}{self.value}"


def conditions(text: str | Sequence[str] | None) -> list[Condition]:
    """Conditions from a command line, `age>=18,sex=F`: all of them are to hold."""
    return [Condition.parse(part) for part in words(text)]


def words(value: Any) -> list[str]:
    """The parts of a command line's list, `a,b`, as fire hands it over."""
    if value is None:
        return []
    parts = value if isinstance(value, tuple | list) else str(value).split(",")
    return [str(part).strip() for part in parts if str(part).strip()]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _same(found: str, value: str) -> bool:
    numbers = _number(found), _number(value)
    return found == value or (None not in numbers and numbers[0] == numbers[1])


def class_numbers(values: Iterable[str], classes: str | Sequence[str] | None = None) -> dict[str, int]:
    """The class number of each value of the target.

    Args:
        values: that occur.
        classes: `healthy=0,tumour|infarct=1`; values that are not named have no class. By default the values are
            numbered in order, numbers by size, text by the alphabet.

    Raises:
        CohortError: what is no mapping, classes that are not 0, 1, 2, ..., or a value that does not occur.
    """
    there = set(values)
    if not words(classes):
        return {value: i for i, value in enumerate(sorted(there, key=lambda v: (_number(v) or 0.0, v)))}
    mapping: dict[str, int] = {}
    for part in words(classes):
        match = re.fullmatch(r"(.+)=(\d+)", part)
        if not match:
            raise CohortError(f"expected classes such as healthy=0,tumour|infarct=1, got {part!r}")
        mapping |= {value.strip(): int(match[2]) for value in match[1].split("|")}
    if sorted(set(mapping.values())) != list(range(max(mapping.values()) + 1)):
        raise CohortError(f"classes must be numbered 0, 1, 2, ...; got {sorted(set(mapping.values()))}")
    if strange := sorted(set(mapping) - there):
        raise CohortError(f"no subject has {', '.join(strange)}; the target's values are {', '.join(sorted(there))}")
    return mapping
