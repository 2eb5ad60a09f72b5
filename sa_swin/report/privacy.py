"""What of a run is shown to others: cases by number, and nothing of where they lie or what their files are called."""

import re
from collections.abc import Sequence
from typing import Any

from custom.support.bundle_command import PATHS

Row = dict[str, str]
HIDDEN = "(a path)"


def numbered(rows: Sequence[Row], findings: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of cases, and those of their findings, with the number of the case in place of its subject."""
    names = {row.get("image"): f"case {number}" for number, row in enumerate(rows, 1)}
    cases = [row | {"subject": f"case {number}"} for number, row in enumerate(rows, 1)]
    return cases, [row | {"subject": names.get(row.get("image"), "a case")} for row in findings]


def without_places(content: Any, places: Sequence[str]) -> Any:
    """A record's or a config's content with `HIDDEN` in place of every path.

    Args:
        content: of dictionaries, lists and values.
        places: paths that are known, which may stand inside of an expression, too.
    """
    if isinstance(content, dict):
        return {
            key: HIDDEN if _is_place(key, value) else without_places(value, places) for key, value in content.items()
        }
    if isinstance(content, list):
        return [without_places(value, places) for value in content]
    if not isinstance(content, str):
        return content
    if not content.startswith(("$", "@", "%")):
        return HIDDEN if re.search(r"[/\\]|^~", content) else content
    if "@" not in content:  # else a quoted part may be the rest of a path only
        content = re.sub(r"(?<=['\"])(?:/|~/|[A-Za-z]:\\)[^'\"]+(?=['\"])", HIDDEN, content)
    for place in sorted((place for place in places if len(place) > 1), key=len, reverse=True):
        content = content.replace(place, HIDDEN)
    return content


def _is_place(key: Any, value: Any) -> bool:
    return key in PATHS and isinstance(value, str) and not value.startswith(("$", "@", "%"))
