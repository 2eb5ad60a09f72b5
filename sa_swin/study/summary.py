"""From the cells' results to a study's figures: every arm with its interval, every comparison with its p-value."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import false_discovery_control

from custom.data import datalist
from custom.evaluation.calibration import calibration_error
from sa_swin.study.cohort import Cohort, kind, order, read_lists, studied
from sa_swin.study.done import is_done, split_of
from sa_swin.study.plan import Study, describe, members
from sa_swin.study.statistics import (
    delong_variance,
    difference_interval,
    difference_test,
    figure_interval,
    folds,
    mean_auc,
    mean_log_loss,
    mean_score,
    score_variance,
)

FACTS = ("healthy", "side", "diagnosis", "lesion_ml", "site")
"""What groups of cases are made from, where the cohort has it."""
CALIBRATION = {"temperature", "bias"}
FEWEST_SEEDS = 3
"""Trainings of an arm below which nothing is said: two trainings of one arm differ by as much as many arms do, and of
two the spread is hardly known."""


def collect(study: Study, folder: Path) -> dict[str, Any]:
    """Per-case scores of all finished arms, as the study's JSON holds them.

    Args:
        study: the study.
        folder: of its work.

    Returns:
        The study file's content, the cohort's sizes, the facts of the test subjects, and the arms, each with `seeds`,
        those that have run, `seconds`, and `scores`, a list per seed in the order of `subjects`. The cells that have
        not run are named in `missing`.
    """
    facts = facts_of(study, folder)
    arms, missing = [], []
    for arm in study.arms:
        results = []
        for seed in study.content["seeds"]:
            cells = [study.cell(arm, seed, fold) for fold in study.folds]
            paths = [folder / "cells" / cell.digest / "result.json" for cell in cells]
            undone = [c.name for c, p in zip(cells, paths, strict=True) if not is_done(p.parent, split_of(c, folder))]
            missing += undone
            if not undone:
                results.append({"seed": seed} | joined(paths))
        if results:
            arms.append(describe(arm) | of_arm(results, facts))
    missing = list(dict.fromkeys(missing))
    return {"study": study.content, "sizes": sizes(study, folder), "facts": facts, "arms": arms, "missing": missing}


def facts_of(study: Study, folder: Path) -> dict[str, Mapping[str, Any]]:
    """Facts of every test subject, from all lists that name it; who is not said to be healthy is a patient."""
    facts: dict[str, dict[str, Any]] = {}
    for entry in (entry for lists in studied(study, folder) for entry in lists["testing"]):
        own = facts.setdefault(entry["subject"], {"healthy": False, "side": "n/a"})
        own |= {key: entry[key] for key in FACTS if key in entry}
        if isinstance(entry.get("label"), int):
            own["label"] = entry["label"]
    return facts


def sizes(study: Study, folder: Path) -> dict[str, dict[str, int]]:
    """Subjects in each part of the split, in every fold where there are folds, by kind; those that there are."""
    counts: dict[str, dict[str, str]] = {section: {} for section in datalist.SECTIONS}
    for lists in studied(study, folder):
        for section, own in counts.items():
            own.update({entry["subject"]: kind(entry) for entry in lists.get(section, [])})
    if study.folds != [None]:
        counts = {f"in turn, in {len(study.folds)} folds": counts["testing"]} | in_first_fold(study, folder)
    found = {section: Counter(own.values()) for section, own in counts.items()}
    return {section: {own: number[own] for own in sorted(number, key=order)} for section, number in found.items()}


def in_first_fold(study: Study, folder: Path) -> dict[str, dict[str, str]]:
    """Who trains and who validates in the first of the folds: the kind of each subject."""
    paths = sorted(Cohort(study.content["cohort"], folder).lists(True, 0).glob("*.json"))
    own = [read_lists(path) for path in paths]
    return {
        f"{section} in the first": {entry["subject"]: kind(entry) for lists in own for entry in lists[section]}
        for section in ("training", "validation")
    }


def joined(paths: Sequence[Path]) -> dict[str, Any]:
    """One training's result, from those of its folds: every case of any of them, and the time of all."""
    parts = [json.loads(path.read_text()) for path in paths]
    own = [path.with_name("reflected.json") for path in paths]
    reflected = [json.loads(path.read_text()) for path in own if path.exists()]
    result: dict[str, Any] = {
        "seconds": round(sum(part["seconds"] for part in parts), 1),
        "memory_mb": max((part["memory_mb"] for part in parts if part.get("memory_mb")), default=None),
        "commits": [str(part["commit"]) for part in parts],
        "cases": {subject: score for part in parts for subject, score in part["cases"].items()},
        "folds": {subject: fold for fold, part in enumerate(parts) for subject in part["cases"]},
    }
    if len(reflected) == len(paths):
        result["reflected"] = {subject: score for part in reflected for subject, score in part.items()}
    if len(parts) == 1 and parts[0].keys() >= CALIBRATION:  # of one training: each fold has its own
        result["calibration"] = {key: parts[0][key] for key in sorted(CALIBRATION)}
    return result


def of_arm(results: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> dict[str, Any]:
    """An arm as the study's JSON holds it, from its trainings; reflected and calibrated where all of them are."""
    subjects = [subject for subject in facts if subject in results[0]["cases"]]
    arm = {
        "seeds": [result["seed"] for result in results],
        "seconds": [result["seconds"] for result in results],
        "commits": sorted({commit for result in results for commit in result["commits"]}),
        "subjects": subjects,
        "scores": [[result["cases"][subject] for subject in subjects] for result in results],
    }
    if set(results[0]["folds"].values()) != {0}:
        arm["folds"] = [results[0]["folds"][subject] for subject in subjects]
    if all(result["memory_mb"] for result in results):
        arm["memory_mb"] = [result["memory_mb"] for result in results]
    if all("reflected" in result for result in results):
        arm["reflected"] = [[result["reflected"][subject] for subject in subjects] for result in results]
    if all("calibration" in result for result in results):
        arm["calibration"] = [result["calibration"] for result in results]
    return arm


def summarize(study: Study, collected: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of the arms and groups, and the comparisons whose arms are there; a group needs cases enough for them.

    `q` is over all comparisons that the study plans; those that have not run often enough count as showing nothing.
    """
    by_name = {(arm["task"], arm["name"]): arm for arm in collected["arms"]}
    groups = {"all": None, **study.content["groups"]}
    rows = [
        {"task": arm["task"], "arm": arm["name"], "group": group} | figures(arm, collected["facts"], wanted)
        for arm in collected["arms"]
        for group, wanted in groups.items()
        if measurable(arm["task"], columns(arm, collected["facts"], wanted)[0])
    ]
    there = {(row["task"], row["arm"], row["group"]) for row in rows}
    compared = []
    for first, second, group in study.comparisons:
        found = [by_name.get((arm.task, arm.name)) for arm in (first, second)]
        row = {"task": first.task, "arm": first.name, "against": second.name, "group": group or "all"}
        told = all((arm.task, arm.name, row["group"]) in there for arm in (first, second))
        if told and set(found[0]["seeds"]) & set(found[1]["seeds"]):
            compared.append(row | compare(*found, collected["facts"], groups[group or "all"]))
    planned = [row["p"] if row["seeds"] >= FEWEST_SEEDS else 1.0 for row in compared]
    planned += [1.0] * (len(study.comparisons) - len(compared))  # what is shown does not wait for what else will run
    for row, value in zip(compared, false_discovery_control(planned) if compared else [], strict=False):
        row["q"] = float(value)
    return {"arms": rows, "comparisons": compared}


def columns(
    arm: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]],
    group: Mapping[str, Any] | None,
    seeds: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Truth `(N,)`, as `sa_swin.study.statistics` has it, and scores `(S, N)` of an arm's cases in a group."""
    chosen = members({subject: facts[subject] for subject in arm["subjects"]}, group)
    kept = [i for i, subject in enumerate(arm["subjects"]) if subject in chosen]
    positive = [is_positive(arm["task"], facts[arm["subjects"][i]]) for i in kept]
    truth = np.array(positive) + 2 * np.array([arm["folds"][i] for i in kept]) if "folds" in arm else np.array(positive)
    rows = [arm["seeds"].index(seed) for seed in (arm["seeds"] if seeds is None else seeds)]
    return truth, np.array(arm["scores"])[np.ix_(rows, kept)]


def is_positive(task: str, facts: Mapping[str, Any]) -> bool:
    """Whether a case is of the class that is looked for: class 1 of a classification, else a patient."""
    return facts["label"] == 1 if task == "classify" and "label" in facts else not facts["healthy"]


def figure_of(task: str) -> Any:
    """The figure that a task's arms are measured by."""
    return mean_score if task == "segment" else mean_auc


def figures(
    arm: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]], group: Mapping[str, Any] | None
) -> dict[str, Any]:
    """An arm's figure with its interval, the figure of each seed, and the numbers of cases."""
    truth, scores = columns(arm, facts, group)
    figure = figure_of(arm["task"])
    low, high = figure_interval(figure, truth, scores)
    return (
        {
            "value": figure(truth, scores),
            "low": low,
            "high": high,
            "seeds": [figure(truth, own[None]) for own in scores],
            "n": len(truth),
            "n_patients": int((truth % 2).sum()),
            "seconds": float(np.mean(arm["seconds"])),
        }
        | ({"memory_mb": max(arm["memory_mb"])} if "memory_mb" in arm else {})
        | inconsistency(arm)
        | (calibration_figures(arm, truth, scores) if "calibration" in arm and group is None else {})
    )


def inconsistency(arm: Mapping[str, Any]) -> dict[str, float]:
    """Mean change of the probability of a brain when it is reflected, where it was measured."""
    if "reflected" not in arm:
        return {}
    return {"inconsistency": float(np.mean(np.abs(np.array(arm["scores"]) - np.array(arm["reflected"]))))}


def calibration_figures(arm: Mapping[str, Any], truth: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Log loss and expected calibration error of all cases as they are, and as they were before the calibration.

    The difference of the log losses is paired, and its interval is over cases and seeds.
    """
    own = np.array([[part["temperature"], part["bias"]] for part in arm["calibration"]])
    logits = logit(np.clip(scores, 1e-6, 1 - 1e-6))  # six decimals are kept of the scores
    raw = (logits - own[:, 1:]) * own[:, :1]
    low, high = difference_interval(mean_log_loss, truth, logits, raw)
    return {
        "log_loss": mean_log_loss(truth, logits),
        "log_loss_before": mean_log_loss(truth, raw),
        "log_loss_low": low,
        "log_loss_high": high,
        "calibration_error": float(np.mean([calibration_error(truth, row) for row in scores])),
        "calibration_error_before": float(np.mean([calibration_error(truth, row) for row in expit(raw)])),
    }


def compare(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]],
    group: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The figures of two arms over the seeds that both have, their difference, its interval and p-value.

    Raises:
        ValueError: when the arms were not measured on the same cases.
    """
    if first["subjects"] != second["subjects"]:
        raise ValueError(f"{first['name']} and {second['name']} were measured on different cases")
    common = [seed for seed in first["seeds"] if seed in second["seeds"]]
    truth, one = columns(first, facts, group, common)
    _, other = columns(second, facts, group, common)
    figure = figure_of(first["task"])
    values, others = (np.array([figure(truth, own[None]) for own in scores]) for scores in (one, other))
    variance = (score_variance if first["task"] == "segment" else delong_variance)(truth, one, other)
    low, high, p = difference_test(values - others, variance)
    found = {
        "value": float(values.mean()),
        "other": float(others.mean()),
        "difference": float((values - others).mean()),
    }
    return found | {"low": low, "high": high, "p": p, "n": len(truth), "seeds": len(common)}


def measurable(task: str, truth: np.ndarray) -> bool:
    """Whether there are cases enough for a task's figure: of an AUC some of each class, in one fold at least."""
    if task == "segment":
        return len(truth) > 1
    return any(len(np.unique(truth[own] % 2)) == 2 for own in folds(truth)) if len(truth) else False
