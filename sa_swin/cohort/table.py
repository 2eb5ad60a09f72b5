"""Tables of subjects: CSV and TSV in, conditions on their columns, values to class numbers."""

import codecs
import csv
import io
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from custom.data.case import CohortError

Facts = dict[str, str]
"""What a table says of a scan or a subject, by column; what is not known is not in it."""

MISSING = ("", "n/a", "na", "n.a.", "#n/a", "nan", "none", "null", "<na>")

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
    """The rows of a table with a header, as spreadsheets and scripts leave it; a row with nothing in it is empty.

    UTF-8 or UTF-16, with or without a byte-order mark; any line ends; tabs where the header has them, else commas or
    semicolons, as `sep=;` in the first line may say.

    Raises:
        CohortError: no such file, not text, a column twice, or rows longer than the header.
    """
    text, delimiter = _layout(_decoded(path))
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise CohortError(f"{path} is no table: {error}") from error
    header = [name.strip() for name in lines[0]] if lines else []
    if twice := [name for name, count in Counter(filter(None, header)).items() if count > 1]:
        raise CohortError(f"{path} has two columns named {twice[0]}; rename one")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        cells = [cell.strip() for cell in line]
        if any(cells[len(header) :]):
            raise CohortError(f"{path}, line {number}: more cells than the header has columns")
        there = zip(header, cells, strict=False)
        rows.append({name: value for name, value in there if name and value.lower() not in MISSING})
    return rows


def tsv(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> str:
    """A table of BIDS with these columns, each value in one line, `n/a` where there is none."""

    def cell(value: Any) -> str:
        return " ".join(str("" if value is None else value).split()) or "n/a"

    lines = [names, *([cell(row.get(name)) for name in names] for row in rows)]
    return "".join("\t".join(line) + "\n" for line in lines)


def extended(path: Path, rows: Iterable[Mapping[str, str]]) -> str:
    """The text of a table, as it is, with further rows of its columns below; `n/a` where a row has no value.

    Args:
        path: of the table.
        rows: values by the columns' names in small letters.

    Raises:
        CohortError: no such file, or not text.
    """
    text = _decoded(path)
    body, delimiter = _layout(text)
    names = [name.strip().lower() for name in next(csv.reader(body.splitlines()[:1], delimiter=delimiter), [])]
    end = "\r\n" if "\r\n" in text else "\n"
    lines = [delimiter.join(row.get(name, "n/a") for name in names) + end for row in rows]
    return "".join([text, "" if text.endswith(("\r", "\n")) else end, *lines])


def _layout(text: str) -> tuple[str, str]:
    """A table's text from its header on, and what stands between its cells."""
    text = text.lstrip("\r\n")
    if given := re.match(r"sep=(.)\r?\n", text):
        return text[given.end() :], given[1]
    header = text.splitlines()[0] if text.strip() else ""
    return text, "\t" if "\t" in header else max(",;", key=header.count)


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CohortError(f"no table at {path}") from error
    except OSError as error:
        raise CohortError(f"{path} cannot be read: {error.strerror or error}") from error
    wide = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise CohortError(f"{path} is not UTF-8 text: {error}; save it as CSV UTF-8") from error


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
    alternatives between bars. A number may be a range: `89+`, `>89`, `<1`, `60-69`; and an age as DICOM has it, `065Y`.
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

    def unknown(self, facts: Mapping[str, Any]) -> str | None:
        """Why it cannot be told whether a row fulfils the condition; None where it can."""
        if self.column not in facts:
            return f"{self.column} is missing"
        if self.comparison[0] not in "<>":
            return None
        found = str(facts[self.column])
        if (bounds := number_range(found)) is None:
            return f"{self.column} is no number but {found}"
        return None if len(self._verdicts(bounds)) == 1 else f"{self.column} {found} may be {self} or not"

    def holds(self, facts: Mapping[str, Any]) -> bool:
        """Whether a row fulfils the condition, and that is known."""
        if self.unknown(facts):
            return False
        found = str(facts[self.column])
        if self.comparison[0] in "<>":
            return self._verdicts(number_range(found)) == {True}
        among = any(_same(found, value.strip()) for value in self.value.split("|"))
        return among != (self.comparison == "!=")

    def _verdicts(self, bounds: tuple[float, float]) -> set[bool]:
        return {_COMPARISONS[self.comparison](bound, _number(self.value)) for bound in bounds}

    def __str__(self) -> str:
        return f"{self.column}{self.comparison}{self.value}"


def conditions(text: str | Sequence[str] | None) -> list[Condition]:
    """Conditions from a command line, `age>=18,sex=F`: all of them are to hold."""
    return [Condition.parse(part) for part in words(text)]


def words(value: Any) -> list[str]:
    """The parts of a command line's list, `a,b`."""
    if value is None:
        return []
    parts = value if isinstance(value, tuple | list) else str(value).split(",")
    return [str(part).strip() for part in parts if str(part).strip()]


def _number(text: str) -> float | None:
    try:
        number = float(text.replace(",", ".") if text.count(",") == 1 else text)  # 45,5 of a German spreadsheet
    except ValueError:
        return None
    return None if math.isnan(number) else number


def number_range(text: str) -> tuple[float, float] | None:
    """The least and the largest number that a cell may mean; None where it means none.

    >>> number_range("89+"), number_range("60-69"), number_range("045Y"), number_range("old")
    ((89.0, inf), (60.0, 69.0), (45.0, 45.0), None)
    """
    text = text.strip()
    if (number := _number(text)) is not None:
        return number, number
    if match := re.fullmatch(r"(\d+) ?([YMWDymwd])(?:rs|r|ears)?", text):
        years = int(match[1]) / {"y": 1, "m": 12, "w": 52.18, "d": 365.25}[match[2].lower()]
        return years, years
    if match := re.fullmatch(r"(\S+?) ?(?:-|\u2013|to) ?(\S+)", text):
        low, high = _number(match[1]), _number(match[2])
        return (low, high) if None not in (low, high) and low <= high else None
    if match := re.fullmatch(r"(\S+?) ?\+|(>=|\u2265|>|<=|\u2264|<) ?(\S+)", text):
        bound = _number(match[1] or match[3])
        sign = match[2] or ">="
        if bound is None:
            return None
        if sign in (">", "<"):  # the bound itself is not meant
            bound = math.nextafter(bound, math.inf if sign == ">" else -math.inf)
        return (bound, math.inf) if sign in (">", ">=", "\u2265") else (-math.inf, bound)
    return None


def _same(found: str, value: str) -> bool:
    numbers = _number(found), _number(value)
    return found == value or (None not in numbers and numbers[0] == numbers[1])


def class_numbers(
    values: Iterable[str], classes: str | Sequence[str] | None = None, known: Iterable[str] = ()
) -> dict[str, int]:
    """The class number of each value of the target.

    Args:
        values: that occur.
        classes: `healthy=0,tumour|infarct=1`; values that are not named have no class. By default the values are
            numbered in order, numbers by size, text by the alphabet.
        known: further values of the table, of subjects that are not in this cohort.

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
    there |= set(known)
    if strange := sorted(set(mapping) - there):
        raise CohortError(f"no subject has {', '.join(strange)}; the target's values are {', '.join(sorted(there))}")
    return mapping
