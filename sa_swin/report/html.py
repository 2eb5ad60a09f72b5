"""A report's page, which loads nothing from elsewhere and has no script, and its parts: tables, figures, remarks."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

MOST_ROWS = 300
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #1b1b1b }
h1 { margin-bottom: 0 } h2 { border-bottom: 1px solid #ccc; margin-top: 2em }
img { max-width: 100%; vertical-align: top }
table { border-collapse: collapse; font-size: 13px; margin: .6em 0 } td, th { padding: 2px 9px; border: 1px solid #ddd;
text-align: left; vertical-align: top } th { background: #f3f3f3 } .wide { overflow-x: auto } .note { color: #666 }
.warn { background: #8b0000; color: white; padding: .4em .8em; font-weight: 600 }
pre { font-size: 12px; overflow-x: auto; background: #f7f7f7; padding: 1em }
"""


def whole_page(title: str, parts: Iterable[str]) -> str:
    """A page of parts, which says that it is for research only."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        '<p class="warn">Research only. Not for clinical use.</p>\n' + "\n".join(parts) + "\n</body></html>\n"
    )


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


def coverage_sentence(coverage: float) -> str:
    """What intervals and sets of `custom.evaluation.conformal` mean."""
    return (
        f"Of heads like those of the validation, {coverage:.0%} have their volume between low and high, and as many "
        "have their side or their class in the set. Volume, side and class hold each by itself, not all at once; the "
        "side is that of lesions that were found. Where something cannot be told, the figure beside it is no answer."
    )
