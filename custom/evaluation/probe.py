"""What pretraining has learned so far, by frozen features: a label read from them, their collapse, their steadiness."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.metrics import EmbeddingCollapseMetric

from custom.evaluation.case_table import case_identity

FEWEST = 3
"""Subjects of a class, below which it is not asked for."""
NEIGHBOURS = 5
MOST_FOLDS = 5
FIGURES = ("probe_knn", "probe_linear", "collapse", "scanner_icc", "scanner_icc_asymmetry")


class FrozenProbe:
    """Ignite handler of a pretraining's evaluator: how much of a label its embeddings hold, and whether they collapse.

    Every few evaluations it adds to `engine.state.metrics`, and so to log, TensorBoard and MLflow:
        - `probe_knn`, `probe_linear`: balanced accuracy of the label, cross-validated, on embeddings as they are
        - `collapse`: MONAI's `EmbeddingCollapseMetric`, 0 to 1, higher is more collapsed
        - `scanner_icc`, `scanner_icc_asymmetry`: of heads painted by two scanners, the intraclass correlation of their
          embeddings (mean over dimensions) and of their asymmetry; 1 where the scanner makes no difference
    A figure that the cases do not give is left out. Attach it before the handlers that write metrics.

    Args:
        label: key of the cases, such as `healthy` or a column of the datalist; empty asks for none.
        interval: epochs between two of its figures.
    """

    def __init__(self, label: str = "healthy", interval: int = 1) -> None:
        self.label = label
        self.interval = interval
        self.cases: dict[tuple[str, str], dict[str, Any]] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: self.cases.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.measure)

    def collect(self, engine: Engine) -> None:
        """Keep the embeddings of a batch."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            identity = case_identity(item)
            said = {part: on_cpu(output[part]) for part in ("pred", "rescan") if part in output}
            key = (identity["subject"], identity["image"])
            self.cases[key] = {**said, "label": item.get(self.label), "subject": identity["subject"]}

    def measure(self, engine: Engine) -> None:
        """Add the figures of this evaluation, where it is one's turn."""
        unique = {key: case for part in idist.all_gather([*self.cases.items()]) for key, case in part}
        cases = [unique[key] for key in sorted(unique)]  # each once, in one order, however many processes there are
        figures = probed(cases) if engine.state.epoch % self.interval == 0 and cases else {}
        for name in FIGURES:
            engine.state.metrics.pop(name, None)  # the engine keeps those of the evaluation before
        engine.state.metrics.update(figures)


def on_cpu(said: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A network's output where any process can read it."""
    return {name: torch.as_tensor(value).detach().float().cpu() for name, value in said.items()}


def probed(cases: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Figures of cases with `pred` and perhaps `rescan` (`embedding`, `asymmetry`) and a `label`."""
    embeddings = stacked(cases, "pred", "embedding")
    figures = label_figures(embeddings, [case["label"] for case in cases], [case["subject"] for case in cases])
    if len(embeddings) > 1:
        collapse = EmbeddingCollapseMetric(include_indicators=["effective_rank"])
        figures["collapse"] = float(collapse(torch.from_numpy(embeddings))["aggregate"])
    if all("rescan" in case for case in cases) and len(cases) > 1:
        figures["scanner_icc"] = float(np.mean(icc(embeddings, stacked(cases, "rescan", "embedding"))))
        scores = (stacked(cases, part, "asymmetry") for part in ("pred", "rescan"))
        figures["scanner_icc_asymmetry"] = float(icc(*scores))
    return figures


def stacked(cases: Sequence[Mapping[str, Any]], part: str, name: str) -> np.ndarray:
    """One output of all cases, `(N, ...)` float64."""
    return np.stack([torch.as_tensor(case[part][name]).double().cpu().numpy() for case in cases])


def icc(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intraclass correlation of two measurements of the same cases, one-way random, single, `(N, ...)` to `(...)`.

    References:
        Shrout and Fleiss, Psychological Bulletin 1979, ICC(1, 1).
    """
    mean = (one + other) / 2
    between = 2 * mean.var(axis=0, ddof=1)
    within = ((one - other) ** 2 / 2).mean(axis=0)
    return (between - within) / np.maximum(between + within, 1e-12)


def label_figures(embeddings: np.ndarray, labels: Sequence[Any], subjects: Sequence[str]) -> dict[str, float]:
    """Balanced accuracy of a label by nearest neighbours and by a linear layer, each subject told by the others."""
    from sklearn.linear_model import LogisticRegression  # the better part of a second, which nobody else needs
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = np.array(["" if label is None else str(label) for label in labels])
    people = Counter(name for name, _ in {*zip(names.tolist(), map(str, subjects), strict=True)})
    enough = [name for name, count in people.items() if name and count >= FEWEST]
    if len(enough) < 2:
        return {}
    asked = np.isin(names, enough)
    groups = np.array(subjects)[asked]
    if not (folds := folds_of(names[asked], groups, min(MOST_FOLDS, *map(people.get, enough)))):
        return {}
    fewest = min(len(training) for training, _ in folds)
    neighbours = NEIGHBOURS if asked.sum() > 2 * NEIGHBOURS and fewest >= NEIGHBOURS else 1
    probes = {
        "probe_knn": KNeighborsClassifier(neighbours, metric="cosine"),
        "probe_linear": LogisticRegression(max_iter=1000, class_weight="balanced"),
    }
    figures = {}
    for name, probe in probes.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few cases, the linear layer need not converge
            found = cross_val_predict(make_pipeline(StandardScaler(), probe), embeddings[asked], names[asked], cv=folds)
        figures[name] = float(balanced_accuracy_score(names[asked], found))
    return figures


def folds_of(names: np.ndarray, groups: np.ndarray, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Positions of training and test cases in each fold; none where one subject has so many that a value is missed."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = list(StratifiedGroupKFold(number, shuffle=True, random_state=0).split(names, names, groups))
    missed = any(len(np.unique(names[training])) < len(np.unique(names)) for training, _ in folds)
    return [] if missed else folds
