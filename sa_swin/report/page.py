"""One page on a run: `sa-swin report RUN_DIR` writes a self-contained HTML file.

RUN_DIR is the `output_dir` of a training, an evaluation or an inference. The page shows what the run left there:
curves, figures with bootstrapped confidence intervals, cases, alignment quality, cohort, configuration. It loads
nothing from elsewhere and has no script.
"""

import html
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, brier_score_loss

from custom.evaluation.calibration import calibration_error
from custom.evaluation.metrics import auc
from custom.losses import PRETEXT_TASKS
from custom.support.errors import UserError
from custom.support.files import read_rows, write_whole
from custom.training.tracking_record import add_to_runs
from custom.weights.settings import paths_of
from sa_swin.bootstrap import interval
from sa_swin.report import plots as report_plots
from sa_swin.report.cases import Row, Run, chosen, class_labels, cohort_table, named_column, pictured, used_lists
from sa_swin.report.figures import mosaic
from sa_swin.report.html import coverage_sentence, note, picture, short, table_html, whole_page, words
from sa_swin.report.privacy import numbered, without_places
from sa_swin.report.training import curves_section

BATCH_LOSSES = ("loss", *PRETEXT_TASKS)
PLANE = {
    "similarity": "similarity of the halves",
    "overlap": "overlap of the halves",
    "margin": "margin to other planes",
    "angle_error": "error of the angle, degrees",
    "offset_error": "error of the offset, mm",
    "yaw_deg": "yaw, degrees",
    "roll_deg": "roll, degrees",
    "offset_mm": "offset, mm",
}
APART = {
    "found, not trusted": "Aligned to a plane that cannot be trusted",
    "by hand": "Aligned to a plane set by hand",
    "as it lies": "Not aligned, taken as they lie in their files",
}
MOST_NAMED = 50
WORKFLOWS = {"train": "training", "evaluate": "evaluation", "inference": "inference"}
LAYERS = {"prediction": "prediction red", "truth": "truth green", "asymmetry": "asymmetry by the bar"}


def read_run(folder: Path, ids: bool = False) -> Run:
    """What a run left in its folder; cases go by their number in its table unless `ids` names their subjects.

    Raises:
        UserError: when there is nothing of a run.
    """
    records = {
        path.stem.removeprefix("run_"): json.loads(path.read_text()) for path in sorted(folder.glob("run_*.json"))
    }
    rows = _table(folder / "cases.csv")
    if not (rows or records or any(folder.glob("events.out.tfevents.*"))):
        raise UserError(
            f"{folder} holds no run: expected cases.csv, run_*.json or events.out.tfevents.* as a bundle leaves them "
            "in its output_dir"
        )
    summary = folder / "cases.json"
    content = json.loads(summary.read_text()) if summary.is_file() else {}
    findings = _table(folder / "findings.csv")
    if not ids:
        rows, findings = numbered(rows, findings)
    return Run(folder, rows, findings, content, records, ids)


def _table(path: Path) -> list[Row]:
    return read_rows(path) if path.is_file() else []


def page(run: Run) -> str:
    """The report of a run, as HTML."""
    parts = [part for section in SECTIONS for part in section(run)]
    told = ", ".join(filter(None, (run.record.get("bundle"), WORKFLOWS.get(run.record.get("workflow")))))
    title = ": ".join(filter(None, (told, run.folder.resolve().name if run.ids else ""))) or "a run"
    return whole_page(title, parts)


def figures_section(run: Run) -> Iterator[str]:
    """Figures over all cases, with confidence intervals where they come from single cases."""
    if not run.rows:
        return
    names = class_labels(run)
    rows = [row | {"figure": named_column(row["figure"], names)} for row in (*_intervals(run), *_pretext_rows(run))]
    if rows:
        yield "<h2>Figures</h2>" + table_html(rows)
        if names:
            yield note("Classes: " + html.escape(", ".join(f"{i} {name}" for i, name in sorted(names.items()))) + ".")
        yield note("Intervals: 95 %, percentile bootstrap over cases, 1000 resamples, classes kept at their numbers.")
    metrics = run.summary.get("metrics", {})
    if metrics:
        yield "<details><summary>cases.json</summary>"
        facts = {name: value for name, value in run.summary.items() if name != "metrics"}
        content = {**metrics, **(facts if run.ids else without_places(facts, places(run)))}
        yield table_html([{"": name, "value": short(value)} for name, value in content.items()]) + "</details>"


def _intervals(run: Run) -> Iterator[Row]:
    for name in (name for name in run.names() if name.startswith(("dice", "hd95_mm"))):
        values = run.numbers(name)[np.isfinite(run.numbers(name))]
        if len(values):
            yield _figure_row(f"mean {name}", np.mean, values)
            yield _figure_row(f"median {name}", np.median, values)
    for name in (name for name in run.names() if name.startswith("volume_error_ml")):
        yield _figure_row(f"mean absolute {name}", np.mean, np.abs(run.numbers(name)))
    for caption, *columns, is_probability in detections(run):
        yield _figure_row(f"AUC, {caption}", auc, *columns, strata=columns[0])
        yield _figure_row(f"average precision, {caption}", average_precision_score, *columns, strata=columns[0])
        if is_probability:
            yield _figure_row(f"Brier score, {caption}", brier_score_loss, *columns, strata=columns[0])
            yield _figure_row(f"expected calibration error, {caption}", calibration_error, *columns, strata=columns[0])
    if run.has("prediction") and run.has("label"):
        columns = [run.numbers("label"), run.numbers("prediction")]
        yield _figure_row("accuracy", accuracy_score, *columns, strata=columns[0])
        yield _figure_row("balanced accuracy", balanced_accuracy_score, *columns, strata=columns[0])


def _pretext_rows(run: Run) -> Iterator[Row]:
    """Means of the pretext losses; those of a row are of its whole batch, so that there is no interval."""
    for name in (name for name in BATCH_LOSSES if run.has("asymmetry") and run.has(name)):
        caption = "mean loss" if name == "loss" else f"mean loss, {name}"
        yield {"figure": caption, "value": short(float(run.numbers(name).mean())), "95 %": "", "n": str(len(run.rows))}


def _figure_row(name: str, figure: Any, *columns: np.ndarray, strata: np.ndarray | None = None) -> Row:
    low, high = interval(figure, *columns, strata=strata)
    limits = f"{low:.3g} to {high:.3g}"
    return {"figure": words(name), "value": short(float(figure(*columns))), "95 %": limits, "n": str(len(columns[0]))}


def detections(run: Run) -> Iterator[tuple[str, np.ndarray, np.ndarray, bool]]:
    """What the rows detect: a caption, truth, score, and whether the score is a probability; both truths occur."""
    found = []
    if run.has("label") and run.has("probability_1"):
        labels, names = run.numbers("label").astype(int), class_labels(run)
        count = sum(name.startswith("probability_") for name in run.rows[0])
        for index in range(1 if count == 2 else 0, count):
            found.append(
                (names.get(index, f"class {index}"), labels == index, run.numbers(f"probability_{index}"), True)
            )
    if run.has("healthy") and run.has("asymmetry"):
        ill = np.array([row["healthy"] == "False" for row in run.rows])
        found.append(("not healthy, by the zero-shot asymmetry", ill, run.numbers("asymmetry"), False))
    yield from (item for item in found if len(np.unique(item[1])) == 2)


def plots_section(run: Run) -> Iterator[str]:
    """ROC, precision-recall, calibration, confusion matrix; Dice against volume."""
    for caption, truth, score, is_probability in detections(run):
        yield picture(report_plots.detection(truth, score, caption), f"ROC and precision-recall, {caption}")
        if is_probability:
            yield picture(report_plots.calibration(truth, score, caption), f"calibration, {caption}")
    if run.has("prediction") and run.has("label"):
        labels, predictions = (run.numbers(name).astype(int) for name in ("label", "prediction"))
        known = class_labels(run)
        names = [known.get(i, str(i)) for i in range(sum(name.startswith("probability_") for name in run.names()))]
        yield picture(report_plots.confusion(labels, predictions, names), "confusion matrix")
    for suffix in (name.removeprefix("dice") for name in run.names() if name.startswith("dice")):
        columns = [run.numbers(f"{name}{suffix}") for name in ("dice", "volume_ml", "predicted_ml")]
        yield picture(report_plots.dice_and_volume(*columns), f"Dice against volume {words(suffix)}")


def cases_section(run: Run) -> Iterator[str]:
    """Mosaics of the worst and the best cases, and the tables."""
    heading, picked = chosen(run)
    cases = [case for row, name in picked if (case := pictured(run, row, name)) is not None]
    if cases:
        yield f"<h2>Cases: {html.escape(heading)}</h2>"
        yield picture(mosaic(cases), heading)
        layers = [text for name, text in LAYERS.items() if any(name in case for case in cases)]
        yield note("; ".join(["Slices of the aligned volume", "R is the patient's right", *layers]) + ".")
        if len(cases) < len(picked):
            yield note(f"{len(picked) - len(cases)} further image(s) are not at their place any more.")
    if run.rows:
        yield "<h2>All cases</h2>" + table_html(_shown(run.rows, class_labels(run)))
        if not run.ids:
            yield note("Cases by their number in cases.csv. With --ids True the page names subjects and paths.")
        if coverage := run.rows[0].get("coverage"):
            yield note(coverage_sentence(float(coverage)))
    if run.findings:
        yield "<h2>Findings</h2>" + table_html(_shown(run.findings, class_labels(run)))
        yield note("Connected components. Sides are the patient's; asymmetry index: (right - left) / (right + left).")


def _shown(rows: Sequence[Row], names: Mapping[int, str]) -> list[Row]:
    """What of rows is shown: no paths, no losses of whole batches; the planes have a section."""
    hidden = ("image", "plane", *(BATCH_LOSSES if rows and "asymmetry" in rows[0] else ()))
    kept = ({k: v for k, v in row.items() if k not in hidden and not k.startswith("plane_")} for row in rows)
    return [{named_column(k, names): v for k, v in row.items()} for row in kept]


def alignment_section(run: Run) -> Iterator[str]:
    """How well the midsagittal planes are known, from the cases' rows or from `sa-swin prepare`; who has none."""
    parts = [*planes_quality(run), *planes_apart(run)]
    if parts:
        yield "<h2>Midsagittal alignment</h2>"
        yield from parts


def planes_quality(run: Run) -> Iterator[str]:
    """Figures of the planes that were estimated and trusted."""
    estimated = [row for row in run.rows if row.get("plane") == "estimated"]
    rows = [{k.removeprefix("plane_"): v for k, v in row.items()} for row in estimated]
    prepared = Path(run.record.get("paths", {}).get("dataset_dir", "")) / "planes.csv"
    source = f"of the {len(rows)} cases of this run whose plane was estimated and trusted"
    if not rows and prepared.is_file():
        rows = [row for row in numbered(_table(prepared), [])[0] if row["status"] == "estimated"]
        source = f"of the {len(rows)} volumes that sa-swin prepare aligned"
    if not rows:
        return
    columns = {name: np.array([float(row[name]) for row in rows]) for name in PLANE if name in rows[0]}
    titled = {PLANE[name]: values for name, values in columns.items()}
    yield picture(report_plots.histograms(titled), "quality of the midsagittal planes")
    yield note(f"Planes {source}. The least similar halves:")
    worst = sorted(rows, key=lambda row: float(row["similarity"]))[:5]
    whose = "image" if run.ids and not estimated else "subject"
    yield table_html([{"case": row[whose], **{n: row[n] for n in columns}} for row in worst])


def planes_apart(run: Run) -> Iterator[str]:
    """The cases whose plane was not estimated and trusted, by name."""
    aligned = run.record.get("settings", {}).get("align", True)
    for source, told in APART.items() if aligned else ():
        if named := [row["subject"] for row in run.rows if row.get("plane") == source]:
            rest = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
            yield note(f"{told}, {len(named)}: {html.escape(', '.join(named[:MOST_NAMED]))}{rest}.")


def cohort_section(run: Run) -> Iterator[str]:
    """What the runs of the folder used of their datalists, counted."""
    rows = cohort_table(used_lists(run))
    if rows:
        yield "<h2>Cohort</h2>" + table_html(rows)


def places(run: Run) -> list[str]:
    """The paths that the records of a run name."""
    return [
        text for record in run.records.values() for path in record["paths"].values() if path for text in paths_of(path)
    ]


def record_section(run: Run) -> Iterator[str]:
    """Configuration, versions, seed, commit of every run whose record lies in the folder."""
    for workflow, own in run.records.items():
        record = own if run.ids else {**without_places(own, places(run)), "paths": {}}
        yield f"<h2>Record: {html.escape(workflow)}</h2>"
        facts = {name: record.get(name) for name in ("bundle", "started", "commit", "seed")}
        yield table_html([{"": k, "value": short(v)} for part in (facts, record["paths"]) for k, v in part.items()])
        both = {**record["versions"], **record["machine"]}
        yield table_html([{"": k, "value": short(v)} for k, v in both.items()])
        yield "<details><summary>the configuration as it ran</summary><pre>"
        yield html.escape(yaml.safe_dump(record["config"], sort_keys=False, width=120)) + "</pre></details>"
    if not run.records:
        yield note("This folder has no record of its run (run_*.json): it is from an older version.")


SECTIONS = (
    figures_section, plots_section, curves_section, cases_section, alignment_section, cohort_section, record_section,
)  # fmt: skip


def report_command(run_dir: str, output: str | None = None, ids: bool = False) -> None:
    """Write one self-contained HTML page on a training, an evaluation or an inference. Not for clinical use.

    Args:
        run_dir: the output_dir of the run.
        output: file to write; by default RUN_DIR/report.html.
        ids: name subjects, files and folders; by default cases have numbers, so that the page can be shared.
    """
    folder = Path(run_dir)
    target = Path(output) if output else folder / "report.html"
    try:
        write_whole(target, page(read_run(folder, ids)))
        add_to_runs(folder, target)
    except (UserError, OSError) as error:
        sys.exit(f"sa-swin report: {error}")
    print(target)
