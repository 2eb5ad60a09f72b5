"""The ready study: is symmetry worth it on this cohort? Every subject is tested once, in folds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from custom.data.case import refuse_outside
from custom.support.files import write_whole
from custom.volumes.hounsfield import modality_of
from custom.volumes.loading import load_volume
from sa_swin.study.cohort import every, read_lists
from sa_swin.study.evidence import FIGURES, arms_table, comparisons_table, interval
from sa_swin.study.overview import answer, differences
from sa_swin.study.plan import StudyError
from sa_swin.study.plots import save_svg

BATCH = 2
LOOKED_AT = 12
"""Masks whose classes are looked at before anything is trained, at most twice as many."""
BASELINES: dict[str, dict[str, Any]] = {
    "segment": {
        "_target_": "sa_swin.study.baselines.ImageAlone",
        "network": {"_target_": "SegResNet", "init_filters": 16, "out_channels": 2},
    },
    "classify": {
        "_target_": "sa_swin.study.baselines.ImageAloneClassifier",
        "network": {"_target_": "DenseNet121", "spatial_dims": 3, "in_channels": 1, "out_channels": 2},
    },
}
"""Networks of MONAI that are no Swin, from the image alone to two classes."""
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"symmetry": "none"},
    "channel": {"symmetry": "channel"},
    "saca": {"symmetry": "saca"},
}
CONTROLS = {"other subject": {"kind": "other_subject"}, "wrong axis": {"kind": "wrong_axis"}}
VERDICTS = {
    "yes": "Yes",
    "not shown": "Not shown",
    "too few": "Too few trainings to tell (run it with --seeds 3)",
    "the opposite": "No, it costs",
}
PAGE = """# Is symmetry worth it on this cohort?

**{verdict}** Research only, not for clinical use.

{cohort}. Every subject was tested once, in {folds} folds; {seeds} each. *plain* sees the image alone,
*channel* the mirror image as further input channels, *saca* is the bundle's default; a wrong counterpart should lose
what is won; *baseline* is {baseline} of MONAI, from the image alone, for as many steps.

![Differences with their 95 % intervals](worth.svg)

{arms}
{comparisons}
Intervals: cases and seeds are both drawn again. `q`: after Benjamini-Hochberg over these comparisons. *Yes* and *no*
are only said of three trainings or more, where the interval leaves out zero and `q` is below 0.05.
"""


def content(
    task: str,
    dataset_dir: str,
    grid: Mapping[str, Any],
    settings: Mapping[str, Any],
    steps: int,
    folds: int,
    seeds: int,
    allow_outside: bool = False,
) -> dict[str, Any]:
    """The study file of the ready study.

    Args:
        task: `segment` or `classify`.
        dataset_dir: cohort with datalists, raw or prepared.
        grid: `spacing` and `spatial_size` of the aligned volumes.
        settings: further settings of the bundle, over the small network of these studies.
        steps: of each training, about.
        folds: in each of which other subjects are tested.
        seeds: trainings of each arm and fold.
        allow_outside: read files outside of `dataset_dir`, too.

    Raises:
        StudyError: on fewer than two folds or no training, an unknown task, a cohort without a datalist for it, or one
            with other than two classes.
    """
    if folds < 2 or seeds < 1:
        raise StudyError(f"the ready study needs 2 folds or more, and 1 seed or more; got {folds} and {seeds}")
    entries = labelled_entries(Path(dataset_dir), task)
    epochs = max(1, math.ceil(steps * BATCH / max(1, round(len(entries) * (1 - 1 / folds)))))
    small = {"feature_size": 12, "window_size": 4, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
    saca = {"task": task, "variant": "saca"}
    return {
        "name": "worth",
        "cohort": {"dataset_dir": dataset_dir},
        "grid": dict(grid),
        "folds": folds,
        "seeds": list(range(seeds)),
        "settings": small
        | {"warmup_epochs": min(1, epochs - 1), "learning_rate": 2.0e-3}
        | further_settings(entries, allow_outside),
        task: {"max_epochs": epochs, "batch_size": BATCH, **settings},
        "variants": {**VARIANTS, "saca": default_of(task, entries), "baseline": {"network": BASELINES[task]}},
        "controls": CONTROLS,
        "arms": [
            {"task": task, "variant": [*VARIANTS, "baseline"]},
            {**saca, "control": list(CONTROLS)},
        ],
        "comparisons": [
            {"task": task, "arm": {"variant": "saca"}, "against": {"variant": "plain"}},
            {"task": task, "arm": {"variant": "channel"}, "against": {"variant": "plain"}},
            *({**saca, "arm": {"control": "none"}, "against": {"control": control}} for control in CONTROLS),
            {"task": task, "arm": {"variant": "saca"}, "against": {"variant": "baseline"}},
        ],
    }


def default_of(task: str, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The bundle's default with the counterpart: a classifier of MR sees the asymmetry map, too."""
    mapped = task == "classify" and modality_of(entries[0]["image"]) != "CT"
    return VARIANTS["saca"] | ({"asymmetry_map": True} if mapped else {})


def further_settings(entries: Sequence[Mapping[str, Any]], allow_outside: bool) -> dict[str, Any]:
    """What differs from the bundles' defaults; what does not is left out, so that cells stay what they were."""
    ct = modality_of(entries[0]["image"]) == "CT"
    return ({"modality": "CT"} if ct else {}) | ({"allow_outside": True} if allow_outside else {})


def labelled_entries(dataset_dir: Path, task: str) -> list[dict[str, Any]]:
    """Entries of the task's datalist.

    Raises:
        StudyError: on an unknown task, or a cohort that the ready study cannot be run on.
    """
    if task not in BASELINES:
        raise StudyError(f"task must be one of {', '.join(BASELINES)}, got {task}")
    path = dataset_dir / "datalists" / f"{task}.json"
    if not path.is_file():
        raise StudyError(f"no {path}; make it with sa-swin cohort build --output {path.parent}")
    if not (entries := every(read_lists(path))):
        raise StudyError(f"{path} lists no cases")
    if without := [entry["subject"] for entry in entries if "label" not in entry]:
        raise StudyError(f"{path}: {without[0]} has no label; give it one, or leave it out")
    labels = sorted({entry["label"] for entry in entries}) if task == "classify" else [0, 1]
    if labels != [0, 1]:
        raise StudyError(f"{path}: the ready study is of classes 0 and 1, found {labels}; write a study file")
    if several := [entry["subject"] for entry in entries if not isinstance(entry["image"], str)]:
        raise StudyError(f"{path}: the ready study is of one image per case, {several[0]} has more; write a study file")
    return entries


def refuse_classes(dataset_dir: Path, allow_outside: bool = False) -> None:
    """Refuse a cohort with masks of several classes; some of them are looked at.

    Raises:
        StudyError: with the file and the class.
        CohortError: masks that lie outside, unless that is allowed.
    """
    entries = every(read_lists(dataset_dir / "datalists" / "segment.json"))
    refuse_outside((entry["label"] for entry in entries), dataset_dir, allow_outside)
    for entry in entries[:: max(1, len(entries) // LOOKED_AT)]:
        path = dataset_dir / entry["label"]
        if (largest := round(float(load_volume(str(path)).max()))) > 1:
            raise StudyError(
                f"{path}: the ready study is of masks of 0 and 1, found {largest}; join the classes, or write "
                "a study file"
            )


def write_plan(plan: Mapping[str, Any], work: Path) -> Path:
    """Write the study file into the work folder."""
    path = work / "worth.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump(dict(plan), sort_keys=False))
    return path


def verdict(study: Mapping[str, Any]) -> str:
    """One sentence: with the mirrored counterpart against without; or that not all has run."""
    if study["missing"]:
        return f"Not known yet: {len(study['missing'])} trainings are missing"
    row = next(r for r in study["summary"]["comparisons"] if (r["arm"], r["against"]) == ("saca", "plain"))
    values = {arm["arm"]: arm["value"] for arm in study["summary"]["arms"] if arm["group"] == "all"}
    with_it, without = values[row["arm"]], values[row["against"]]
    return (
        f"{VERDICTS[answer(row)]}: {FIGURES[row['task']]} {with_it:.3f} with the mirrored counterpart, {without:.3f} "
        f"without; difference {row['difference']:+.3f} {interval(row, '+')}, n = {row['n']}."
    )


def write_page(study: Mapping[str, Any], work: Path) -> Path:
    """Write `worth.md` and its plot: the verdict, the paired differences, and what each arm costs."""
    rows, task = study["summary"]["comparisons"], study["summary"]["arms"][0]["task"]
    words: Sequence[tuple[str, Mapping[str, Any]]] = [(f"{r['arm']} against {r['against']}", r) for r in rows]
    save_svg(differences(words, FIGURES[task]), work / "worth.svg")
    tested = next(iter(study["sizes"].values()))
    kinds = ", ".join(f"{count} {kind}" for kind, count in tested.items())
    page = PAGE.format(
        verdict=verdict(study),
        cohort=f"`{study['study']['cohort']['dataset_dir']}`: {kinds}",
        folds=study["study"]["folds"],
        seeds=f"{(count := len(study['study']['seeds']))} training{'s' * (count > 1)}",
        baseline=BASELINES[task]["network"]["_target_"],
        arms=arms_table(study["summary"]["arms"], FIGURES[task]),
        comparisons=comparisons_table(rows),
    )
    write_whole(work / "worth.md", page)
    return work / "worth.md"
