"""Parts of a report's page: tables, figures, remarks."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

MOST_ROWS = 300


def picture(figure: Figure, description: str) -> str:
    """A figure as an image that is part of the page."""
    file = io.BytesIO()
    figure.savefig(file, dpi=100, format="png")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'


def table_html(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as a table, the first `MOST_ROWS` of them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(words(name))}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(short(row.get(name, '')))}</td>" for name in names) + "</tr>\n"
        for row in rows[:MOST_ROWS]
    )
    rest = note(f"and {len(rows) - MOST_ROWS} more rows in the file") if len(rows) > MOST_ROWS else ""
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>{rest}'


def words(name: str) -> str:
    """A column's name as words."""
    return name.replace("_", " ").strip()


def note(text: str) -> str:
    """A small remark."""
    return f'<p class="note">{text}</p>'


def short(value: Any) -> str:
    """A value as the tables show it: numbers with fractions to four digits."""
    if isinstance(value, str):
        try:
            return short(float(value)) if "." in value else value
        except ValueError:
            return value
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
