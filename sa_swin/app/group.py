"""All scans of a dataset of results together: one table and one page, from their summaries alone."""

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from custom.support.errors import UserError
from custom.support.files import write_whole
from custom.transforms.findings import Row
from sa_swin.app.derivatives import INTERVALS
from sa_swin.app.page import short_digest
from sa_swin.app.person import SUMMARY
from sa_swin.cohort.table import tsv
from sa_swin.report.html import note, picture, short, table_html, whole_page
from sa_swin.report.page import APART, PLANE
from sa_swin.report.plots import histograms

IDENTITY = ("name", "subject", "session", "status", "reason")


def flat(summary: Mapping[str, Any]) -> Row:
    """A summary as one row: a column for each figure, with the class in its name where there are several."""
    row = {name: summary.get(name, "") for name in IDENTITY}
    plane = summary.get("plane", {})
    row |= {"plane" if name == "source" else f"plane_{name}": value for name, value in plane.items()}
    row |= {name: value for name, value in summary.get("asymmetry", {}).items() if name != "unit"}
    for lesion in summary.get("lesions", ()):
        row |= {f"{name}_{lesion['class']}": value for name, value in lesion.items() if name != "class"}
    classes = summary.get("classes", {})
    row |= {f"probability_{name}": value for name, value in classes.get("probability", {}).items()}
    row |= {name: classes[name] for name in ("likeliest", *INTERVALS) if name in classes}
    return row | {f"weights_{model['task']}": short_digest(model["sha256"]) for model in summary.get("weights", ())}


def write_group(output: Path) -> int:
    """Write `group.tsv` and `group.html`, and return how many scans failed.

    Raises:
        UserError: no scan was done there.
    """
    summaries = [json.loads(path.read_text()) for path in sorted(output.rglob(f"sub-*{SUMMARY}"))]
    if not summaries:
        raise UserError(f"{output} has no results of a scan; run `sa-swin app BIDS_DIR OUTPUT_DIR participant` first")
    rows = [flat(summary) for summary in summaries]
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_whole(output / "group.tsv", tsv(rows, names))
    write_whole(output / "group.html", whole_page(f"{len(rows)} scans", sections(rows)))
    return sum(row["status"] != "done" for row in rows)


def sections(rows: Sequence[Row]) -> Iterator[str]:
    """Parts of the page: the scans with their pages, what failed, the planes."""
    done = [row for row in rows if row["status"] == "done"]
    failed = [row for row in rows if row["status"] != "done"]
    if failed:
        yield f"<h2>Failed: {len(failed)}</h2>"
        yield table_html([{name: row[name] for name in ("name", "reason")} for row in failed])
    if not done:
        return
    yield f"<h2>Done: {len(done)}</h2>"
    order = sorted(done, key=lambda row: -(row.get("peak") or 0))
    if "peak" in order[0]:
        yield note("The largest asymmetry first.")
    yield note(" ".join(f'<a href="{html.escape(row["name"])}.html">{html.escape(row["name"])}</a>' for row in order))
    hidden = {
        "subject",
        "session",
        "status",
        "reason",
        "norm",
        "threshold",
        *(n for n in order[0] if n[:6] == "voxel_"),
    }
    yield table_html([{k: short(v) for k, v in r.items() if k not in hidden and k[:6] != "plane_"} for r in order])
    yield from planes(done)


def planes(rows: Sequence[Row]) -> Iterator[str]:
    """Quality of the planes, and whose cannot be trusted."""
    yield "<h2>Midsagittal planes</h2>"
    columns = {
        title: np.array([row[f"plane_{name}"] for row in rows if row.get(f"plane_{name}") is not None])
        for name, title in PLANE.items()
    }
    known = {title: values for title, values in columns.items() if len(values)}
    if known:
        yield picture(histograms(known), "quality of the planes")
    for source, told in APART.items():
        if named := [row["name"] for row in rows if row.get("plane") == source]:
            yield note(f"{told}, {len(named)}: {html.escape(', '.join(named))}.")
