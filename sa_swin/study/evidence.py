"""The page of evidence, made from the studies' JSON files alone: no number in it is written by hand."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from custom.support.errors import UserError
from custom.support.files import write_whole
from sa_swin.bootstrap import NUM_RESAMPLES
from sa_swin.study.overview import SIGNIFICANT, answer, overview, sentences
from sa_swin.study.plots import forest, label_curve, save_svg

FIGURES = {"pretrain": "zero-shot AUC", "normative": "normative AUC", "classify": "AUC", "segment": "Dice"}
REAL = {"bids", "table", "datalist", "dataset_dir", "images"}
"""Options of a cohort whose heads are not painted."""
HEAD = """# Evidence

What symmetry is worth, and what not: real heads first, then painted ones. Small networks, coarse voxels, minutes of
training: what is compared is how the parts of the method act, not how well they could do. **Not for clinical use.**

![Differences of the chosen comparisons with their intervals](evidence/overview.svg)

{sentences}
*Better* or *worse* is said only where the 95 % interval leaves out zero and `q` is below {significant};
*no difference shown* is no proof that there is none. Means over the seeds, on held-out subjects;
of *fewer than three trainings* there is no verdict. Made by
`sa-swin study evidence` from `studies/results/*.json`; a test holds the two together. The studies themselves are
`studies/*.yaml`: [how to run one](how-to/studies.md).

<details><summary>How to read the tables</summary>

- An *arm* is one way to train; it is trained once per seed, from the same split by subject, and measured on the same
  held-out subjects. Its figure is the mean over its seeds; what it is measured on are the last weights, in every arm.
- Intervals are 95 % percentile bootstrap intervals in which the cases (by class) and the seeds are both drawn again,
  {resamples} times. With few seeds, the seeds' part of an interval is too narrow.
- Differences are paired: the same cases and seeds in both arms. Their intervals and `p` are of other cases and of other
  trainings: the variance over cases (DeLong's for an AUC) and that of the seeds' differences together, by a t-test with
  Satterthwaite's degrees of freedom. `q` is `p` after Benjamini-Hochberg over all comparisons that the study plans,
  those without a verdict counted as 1.
- Of *fewer than three trainings* no verdict is given, and of one the interval and `p` are over cases alone: two seeds
  of one arm often differ by as much as two arms do.
- In folds every subject is tested once, by a training that did not see it; an AUC compares subjects of one fold.
- In `anatomies` lesions on both sides had up to twice the volume of those on one side; mended since, not run again.
- In painted cohorts of before 2026-11-28 each kind of finding lay on a side of its own (tumours left, infarcts right):
  `classify`, `pretrain`, `normative`, `few_shot`, `flair`, `midline`, `anatomies`, `segment`, `tried`. The networks
  were asked whether a brain is healthy, which was not tied to the side; no network was asked for the kind.
- Calibration: `logits / temperature + bias`, both fitted to the validation subjects, before and after. It does not
  change the AUC of two classes. A difference of log losses below zero is a gain.
- An answer is *yes* or *the opposite* only where the interval leaves out zero and `q` is below {significant}; all else
  is *not shown*, which is not a proof of no difference, or has *too few* trainings.
- Seconds are of machines that did other things beside: they tell orders of magnitude.

</details>
"""


def dumps(content: Mapping[str, Any]) -> str:
    """JSON with one line per arm, subject and row, so that a change can be read in a diff."""
    parts = []
    for name, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines = ",\n".join(f"  {json.dumps(item)}" for item in value)
            parts.append(f'"{name}": [\n{lines}\n ]')
        elif name in ("facts", "summary"):
            lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
            parts.append(f'"{name}": {{\n{lines}\n }}')
        else:
            parts.append(f'"{name}": {json.dumps(value)}')
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def read(results: Path) -> list[dict[str, Any]]:
    """The studies' contents, those on real heads first, in the order of their file names.

    Raises:
        UserError: when there is none.
    """
    studies = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    if not studies:
        raise UserError(f"no study's JSON in {results}; run sa-swin study STUDY.yaml first")
    return sorted(studies, key=lambda study: REAL.isdisjoint(study["study"]["cohort"]))


def write(results: Path, output: Path) -> list[Path]:
    """Write the page and its plots; returns what was written."""
    studies = read(results)
    written = [output.parent / "evidence" / "overview.svg"]
    save_svg(overview(studies), written[0])
    for study in studies:
        for name, draw in plots(study).items():
            target = output.parent / "evidence" / f"{name}.svg"
            save_svg(draw(), target)
            written.append(target)
    write_whole(output, page(studies))
    return [*written, output]


def plots(study: Mapping[str, Any]) -> dict[str, Callable[[], Figure]]:
    """What draws the study's plots, by name: a forest of its arms per task, a curve over the share of labels."""
    name = study["study"]["name"]
    rows = study["summary"]["arms"]
    figures = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        figures[f"{name}_{task}"] = partial(forest, [row for row in rows if row["task"] == task], FIGURES[task])
    percents = {(arm["task"], arm["label_percent"]) for arm in study["arms"]}
    for task in dict.fromkeys(arm["task"] for arm in study["arms"]):
        if sum(own == task for own, _ in percents) > 1:
            figures[f"{name}_{task}_labels"] = partial(label_curve, study, task, FIGURES[task])
    return figures


def page(studies: Sequence[Mapping[str, Any]]) -> str:
    """The page as Markdown."""
    opening = HEAD.format(resamples=NUM_RESAMPLES, significant=SIGNIFICANT, sentences=sentences(studies))
    parts = [opening, "## Questions and answers\n", folded("All comparisons", answers(studies))]
    return "\n".join([*parts, *(section(study) for study in studies)])


def answers(studies: Sequence[Mapping[str, Any]]) -> str:
    """What was asked, and what the studies answer."""
    lines = [
        "| study | question | answer | difference | 95 % interval | q | seeds | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for study in studies:
        for row in study["summary"]["comparisons"]:
            title = study["study"].get("title", study["study"]["name"])
            cells = [
                title,
                question(row),
                answer(row),
                f"{row['difference']:+.3f}",
                interval(row, "+"),
                small(row["q"]),
            ]
            cells += [str(row["seeds"]), str(row["n"])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def question(row: Mapping[str, Any]) -> str:
    """A comparison as a question."""
    where = "" if row["group"] == "all" else f" ({row['group']})"
    return f"Is {row['arm']} better than {row['against']} in {FIGURES[row['task']]}{where}?"


def section(study: Mapping[str, Any]) -> str:
    """A study's part of the page."""
    own = study["study"]
    parts = [f"## {own.get('title', own['name'])}\n"]
    if own.get("about"):
        parts.append(own["about"].strip() + "\n")
    parts += [cohort_line(study), *(f"![{name}](evidence/{name}.svg)\n" for name in plots(study))]
    tables = []
    for task in dict.fromkeys(row["task"] for row in study["summary"]["arms"]):
        own_rows = [row for row in study["summary"]["arms"] if row["task"] == task]
        tables.append(arms_table(own_rows, FIGURES[task]))
        if any("log_loss" in row for row in own_rows):
            tables.append(calibration_table(own_rows))
    if study["summary"]["comparisons"]:
        tables.append(comparisons_table(study["summary"]["comparisons"]))
    parts.append(folded("Figures of every arm, and differences", "\n".join(tables)))
    if study["missing"]:
        parts.append(f"Not run yet: {not_run(study['missing'])}.\n")
    return "\n".join(parts)


def folded(summary: str, content: str) -> str:
    """What is shown when its summary is clicked."""
    return f"<details><summary>{summary}</summary>\n\n{content}\n</details>\n"


def not_run(missing: Sequence[str]) -> str:
    """Cells that have not run, by arm: from `arm, seed 1` and `arm, seed 2` to `arm (seeds 1, 2)`."""
    seeds: dict[str, list[str]] = {}
    for name in missing:
        arm, _, seed = name.rpartition(", seed ")
        seeds.setdefault(arm, []).append(seed)
    return "; ".join(f"{arm} (seed{'s' * (len(own) > 1)} {', '.join(own)})" for arm, own in seeds.items())


def cohort_line(study: Mapping[str, Any]) -> str:
    """Who was trained and measured on, and the training's size."""
    sizes = study["sizes"]
    words = "; ".join(
        f"{part} {', '.join(f'{count} {kind}' for kind, count in counts.items())}" for part, counts in sizes.items()
    )
    own = study["study"]
    settings = {
        key: own[key] for key in ("cohort", "grid", "settings", "classify", "segment", "pretrain") if key in own
    }
    told = sorted({commit for arm in study["arms"] for commit in arm["commits"]})
    commits = ["some not recorded" if commit == "None" else commit[:8] + commit[40:] for commit in told]  # "+changes"
    seeds = sorted({seed for arm in study["arms"] for seed in arm["seeds"]})
    details = "; ".join(
        f"{part}: {', '.join(f'{k} {v}' for k, v in values.items())}" for part, values in settings.items()
    )
    return f"Subjects: {words}. Seeds: {', '.join(map(str, seeds))}. Commits: {', '.join(commits)}.\n\n" + folded(
        "Settings", f"{details}\n"
    )


def arms_table(rows: Sequence[Mapping[str, Any]], figure: str) -> str:
    """Figures of the arms, a column per group of cases."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    numbers = {row["group"]: f"n = {row['n']}" for row in rows}
    measured = any("inconsistency" in row for row in rows)
    head = ["arm", *(f"{figure}, {group} ({numbers[group]})" for group in groups), "seeds (all)", "seconds per run"]
    head += ["change when reflected"] if measured else []
    weighed = any("memory_mb" in row for row in rows)
    head += ["peak memory, MB"] if weighed else []
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = {row["group"]: row for row in rows if row["arm"] == arm}
        values = [f"{own[group]['value']:.3f} {interval(own[group])}" for group in groups]
        seeds = ", ".join(f"{value:.3f}" for value in own["all"]["seeds"])
        cells = [arm, *values, seeds, format(own["all"]["seconds"], ".0f")]
        if measured:
            cells.append(format(own["all"]["inconsistency"], ".3f") if "inconsistency" in own["all"] else "")
        if weighed:
            cells.append(format(own["all"]["memory_mb"], ".0f") if "memory_mb" in own["all"] else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def calibration_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What temperature and class biases, fitted to validation subjects, do to the probabilities of the test cases."""
    head = ["arm", "log loss before calibration", "after", "difference", "calibration error before", "after"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in (row for row in rows if "log_loss" in row):
        difference = row["log_loss"] - row["log_loss_before"]
        limits = f"[{row['log_loss_low']:+.3f}, {row['log_loss_high']:+.3f}]"
        cells = [f"{row['log_loss_before']:.3f}", f"{row['log_loss']:.3f}", f"{difference:+.3f} {limits}"]
        cells += [f"{row['calibration_error_before']:.3f}", f"{row['calibration_error']:.3f}"]
        lines.append(f"| {' | '.join([row['arm'], *cells])} |")
    return "\n".join(lines) + "\n"


def comparisons_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Differences between arms."""
    head = ["arm", "against", "cases", "n", "seeds", "difference", "95 % interval", "p", "q"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [
            row["arm"],
            row["against"],
            row["group"],
            str(row["n"]),
            str(row["seeds"]),
            f"{row['difference']:+.3f}",
        ]
        lines.append(f"| {' | '.join([*cells, interval(row, '+'), small(row['p']), small(row['q'])])} |")
    return "\n".join(lines) + "\n"


def interval(row: Mapping[str, Any], sign: str = "") -> str:
    """A row's interval as text."""
    return f"[{row['low']:{sign}.3f}, {row['high']:{sign}.3f}]"


def small(p: float) -> str:
    """A p-value as text."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
