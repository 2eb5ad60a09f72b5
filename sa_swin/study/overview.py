"""What opens the page of evidence: the chosen comparisons in five sentences and one forest plot.

Which comparisons are told is chosen here; what they say, numbers and verdicts, comes from the studies' JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from sa_swin.study.summary import FEWEST_SEEDS

SIGNIFICANT = 0.05
COLOURS = {"yes": "tab:green", "not shown": "grey", "too few": "lightgrey", "the opposite": "tab:red"}
VERDICTS = {
    "yes": "better",
    "not shown": "no difference shown",
    "too few": "fewer than three trainings, no verdict",
    "the opposite": "worse",
}


@dataclass(frozen=True)
class Headline:
    """A comparison to tell: its words, and where it stands.

    Args:
        words: what is compared, as a line of the plot.
        study: its name.
        arm: of the study, with seeds and cases.
        against: the other arm.
        group: of cases.
        task: of the arms.
    """

    words: str
    study: str
    arm: str
    against: str
    group: str = "unilateral"
    task: str = "classify"


FEW_T1W, FEW_FLAIR, FEW = "few_labels_t1w", "few_labels_flair", ", 10 % of labels"

SENTENCES = (
    (
        "Gliomas of real patients, segmented (Dice), with the mirrored counterpart against without",
        (
            Headline("patients, T1w", "gliomas_t1w", "saca", "plain", "all", "segment"),
            Headline("patients, FLAIR", "gliomas_flair", "saca", "plain", "all", "segment"),
            Headline(
                "T1w, not another patient's counterpart", "gliomas_t1w", "saca", "saca, other subject", "all", "segment"
            ),
        ),
    ),
    (
        "Lesions painted on T1w images of real healthy people, told from healthy people (AUC), with against without",
        (
            Headline("real heads, one side", "real_lesions", "saca", "plain", "one side"),
            Headline("the same, with the map", "real_lesions", "mapped", "plain", "one side"),
            Headline("the same, map and weights", "real_lesions", "both", "plain", "one side"),
            Headline("3 to 10 ml, map and weights", "real_lesions", "both", "plain", "one side, 3 to 10 ml"),
        ),
    ),
    (
        "Painted heads, lesions that look like other tissue",
        (
            Headline("painted heads, T1w, one side (AUC)", "classify", "saca", "plain"),
            Headline("own counterpart, not another subject's (AUC)", "classify", "saca", "saca, other subject"),
            Headline("read place by place, not as the mean (AUC)", "classify", "saca", "saca_paper"),
            Headline("painted heads, T1w, masks (Dice)", "segment", "saca", "plain", task="segment"),
        ),
    ),
    (
        "Disease that is much the same on both sides, and lesions brighter than all else (AUC, or Dice)",
        (
            Headline("real heads, both sides", "real_lesions", "saca", "plain", "both sides"),
            Headline("painted heads, T1w, both sides", "classify", "saca", "plain", "bilateral"),
            Headline("painted heads, T1w, across the midline", "midline", "saca", "plain", "midline"),
            Headline("painted heads, FLAIR, one side", "flair", "saca", "plain"),
            Headline("label maps, FLAIR, one side", "anatomies", "saca", "plain"),
            Headline("white-matter lesions, FLAIR (Dice)", "white_matter_flair", "saca", "plain", "all", "segment"),
        ),
    ),
    (
        "Pretraining, against from scratch",
        (
            Headline(
                "gliomas, FLAIR, 10 % of labels: map and weights (Dice)",
                FEW_FLAIR,
                f"both{FEW}",
                f"scratch{FEW}",
                "all",
                "segment",
            ),
            Headline(
                "the same, scratch with smaller steps (Dice)",
                FEW_FLAIR,
                f"both{FEW}",
                f"scratch_slow{FEW}",
                "all",
                "segment",
            ),
            Headline("FLAIR, all labels (Dice)", FEW_FLAIR, "both", "scratch", "all", "segment"),
            Headline("T1w, 10 % of labels (Dice)", FEW_T1W, f"both{FEW}", f"scratch{FEW}", "all", "segment"),
            Headline("T1w, all labels (Dice)", FEW_T1W, "both", "scratch", "all", "segment"),
            Headline("the same, at scratch's learning rate (Dice)", FEW_T1W, "both_fast", "scratch", "all", "segment"),
            Headline(
                "lesions on real T1w heads, one side, 20 % of labels (AUC)",
                "real_lesions",
                "both, 20 % of labels",
                "saca, 20 % of labels",
                "one side",
            ),
            Headline(
                "masks of lesions on real T1w heads, 20 % of labels (Dice)",
                "real_lesions",
                "both, 20 % of labels",
                "saca, 20 % of labels",
                "all",
                "segment",
            ),
            Headline(
                "the same lesions, one side, the weights beside the map (AUC)",
                "real_lesions",
                "both",
                "mapped",
                "one side",
            ),
            Headline(
                "painted heads, the paper's tasks, all labels (AUC)", "pretrain", "saca, weighted pretraining", "saca"
            ),
            Headline(
                "the same, zero-shot, against random weights (AUC)",
                "pretrain",
                "saca, weighted pretraining",
                "saca, untrained pretraining",
                task="pretrain",
            ),
        ),
    ),
)
"""Opening of each sentence, and what it tells."""


def answer(row: Mapping[str, Any]) -> str:
    """What a comparison says: a key of `VERDICTS`."""
    if row["seeds"] < FEWEST_SEEDS:
        return "too few"
    if row["q"] >= SIGNIFICANT or row["low"] <= 0 <= row["high"]:
        return "not shown"
    return "yes" if row["difference"] > 0 else "the opposite"


def found(studies: Sequence[Mapping[str, Any]], headline: Headline) -> dict[str, Any] | None:
    """The comparison, with the figures of both arms over the seeds that both have; None where it has not run."""
    keys = {name: getattr(headline, name) for name in ("task", "arm", "against", "group")}
    for study in studies:
        if study["study"]["name"] == headline.study:
            return next((row for row in study["summary"]["comparisons"] if keys.items() <= row.items()), None)
    return None


def sentences(studies: Sequence[Mapping[str, Any]]) -> str:
    """A numbered sentence for each of `SENTENCES` whose studies have run."""
    lines = []
    for opening, headlines in SENTENCES:
        rows = [(headline.words, found(studies, headline)) for headline in headlines]
        clauses = [
            f"{words} ({row['value']:.3f} against {row['other']:.3f}, **{VERDICTS[answer(row)]}**)"
            for words, row in rows
            if row
        ]
        if clauses:
            lines.append(f"{len(lines) + 1}. {opening}: {'; '.join(clauses)}.")
    return "\n".join(lines) + "\n"


def overview(studies: Sequence[Mapping[str, Any]]) -> Figure:
    """A forest plot of the same comparisons."""
    headlines = [headline for _, own in SENTENCES for headline in own]
    rows = [(headline.words, row) for headline in headlines if (row := found(studies, headline))]
    return differences(rows, "AUC (segmentation: of Dice)")


def differences(rows: Sequence[tuple[str, Mapping[str, Any]]], figure_name: str) -> Figure:
    """A forest plot of comparisons: each difference with its 95 % interval, coloured by its verdict.

    Args:
        rows: words and row of each.
        figure_name: of what the difference is.
    """
    figure = Figure(figsize=(7.5, 0.9 + 0.32 * len(rows)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="black", linewidth=0.8)
    for place, (_, row) in enumerate(rows):
        colour, value = COLOURS[answer(row)], row["difference"]
        error = [[max(0.0, value - row["low"])], [max(0.0, row["high"] - value)]]
        axis.errorbar(value, place, xerr=error, fmt="o", markersize=6, linewidth=2, color=colour)
        axis.annotate(f"{value:+.3f}", (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    axis.set_yticks(range(len(rows)), [words for words, _ in rows], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlabel(f"difference of {figure_name}, 95 % interval", fontsize=9)
    for verdict, colour in COLOURS.items():
        axis.plot([], [], "o", color=colour, label=VERDICTS[verdict])
    axis.legend(fontsize=8, frameon=False, loc="center right")
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    return figure
