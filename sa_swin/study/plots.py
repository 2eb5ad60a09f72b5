"""Plots of a study: its arms with their intervals, and a figure over the share of labels."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from custom.support.files import write_whole

COLOURS = ("black", *matplotlib.color_sequences["tab10"])


def forest(rows: Sequence[Mapping[str, Any]], label: str) -> Figure:
    """One line per arm, one mark with its 95 % interval per group of cases.

    Args:
        rows: of a study's summary, of one task.
        label: of the axis.
    """
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    groups = list(dict.fromkeys(row["group"] for row in rows))
    figure = Figure(figsize=(7, 0.9 + 0.34 * len(arms)), layout="constrained")
    axis = figure.subplots()
    for offset, (group, colour) in enumerate(zip(groups, itertools.cycle(COLOURS), strict=False)):
        own = {row["arm"]: row for row in rows if row["group"] == group}
        values = [own[arm]["value"] for arm in arms]
        errors = [
            [max(0.0, own[arm]["value"] - own[arm]["low"]) for arm in arms],
            [max(0.0, own[arm]["high"] - own[arm]["value"]) for arm in arms],
        ]
        places = [i + 0.2 * (offset - (len(groups) - 1) / 2) for i in range(len(arms))]
        axis.errorbar(values, places, xerr=errors, fmt="o", markersize=3, linewidth=1, color=colour, label=group)
    axis.set_yticks(range(len(arms)), arms, fontsize=7)
    axis.invert_yaxis()
    if "AUC" in label:
        axis.axvline(0.5, color="grey", linewidth=0.6, linestyle=":")
    axis.set_xlabel(label, fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    axis.legend(fontsize=7, frameon=False, loc="best")
    return figure


def label_curve(study: Mapping[str, Any], task: str, label: str) -> Figure:
    """A figure over the share of labelled subjects, a line per variant and pretraining.

    Args:
        study: a study's JSON.
        task: `classify` or `segment`.
        label: of the axis.
    """
    values = {(row["task"], row["arm"]): row for row in study["summary"]["arms"] if row["group"] == "all"}
    lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for arm in study["arms"]:
        if arm["task"] == task and arm["control"] == "none":
            title = arm["variant"] if arm["pretraining"] == "none" else f"{arm['variant']}, {arm['pretraining']}"
            lines.setdefault(title, []).append((arm["label_percent"], values[task, arm["name"]]))
    figure = Figure(figsize=(5, 3), layout="constrained")
    axis = figure.subplots()
    for title, points in sorted(lines.items()):
        if len(points) > 1:
            points.sort(key=lambda point: point[0])
            percents, rows = zip(*points, strict=True)
            axis.plot(percents, [row["value"] for row in rows], marker="o", markersize=3, linewidth=1, label=title)
            axis.fill_between(percents, [row["low"] for row in rows], [row["high"] for row in rows], alpha=0.15)
    axis.set_xscale("log")
    axis.set_xlabel("labelled training subjects, %", fontsize=8)
    axis.set_ylabel(label, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, frameon=False)
    return figure


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure, the same bytes for the same figure."""
    with matplotlib.rc_context({"svg.hashsalt": "sa-swin", "svg.fonttype": "none"}):
        write_whole(path, lambda target: figure.savefig(target, format="svg", metadata={"Date": None}))
