"""The training in a report: its curves, the epoch whose weights were kept, and a table."""

from collections.abc import Iterator, Sequence

import numpy as np

from sa_swin.report.cases import Row, Run
from sa_swin.report.figures import curves, quantities, read_scalars
from sa_swin.report.html import note, picture, short, table_html, words


def curves_section(run: Run) -> Iterator[str]:
    """Loss and metrics of a training: curves, the epoch whose weights were kept, and a table."""
    scalars = read_scalars(run.folder)
    if not scalars:
        return
    yield "<h2>Training</h2>"
    key = next(iter(run.records.get("train", {}).get("config", {}).get("validate", {}).get("key_metric", {})), "")
    points = [(epoch, value) for epoch, value in scalars.get(key, []) if np.isfinite(value)]
    kept = max(points, key=lambda point: point[1])[0] if points else None
    yield picture(curves(scalars, kept), "curves of the training")
    if kept is not None:
        best = "the lowest loss" if key == "neg_loss" else f"the highest {words(key)}"
        yield note(
            f"The dotted line is epoch {kept}, whose weights were kept (model.pt): {best} of the "
            "validation. Training values are means over the steps of an epoch."
        )
    lines = [(name, *part) for name, parts in quantities(scalars).items() for part in sorted(parts.items())]
    yield table_html([_curve_row(name, part, points) for name, part, points in lines])


def _curve_row(name: str, part: str, points: Sequence[tuple[int, float]]) -> Row:
    finite = [(value, epoch) for epoch, value in points if np.isfinite(value)] or [(float("nan"), points[-1][0])]
    extremes = {"lowest": min(finite, key=_value), "highest": max(finite, key=_value)}
    told = {which: f"{short(value)} (epoch {epoch})" for which, (value, epoch) in extremes.items()}
    return {"": words(name), "in": part, "epochs": str(len(points)), "last": short(points[-1][1]), **told}


def _value(point: tuple[float, int]) -> float:
    return point[0]
