"""The split of the built-in cohort, and its datalists for the three bundles."""

from typing import Any

import numpy as np

from custom.data.splits import split_subjects
from sa_swin.phantom.plan import PLACES, Level, apportion

SPLITS = ("training", "validation", "testing")
FOLDS = 5
KEPT = ("site", "side", "diagnosis", "lesion_ml", "anatomy")
"""Columns of participants.tsv that the entries have, too."""
BALANCED = ("healthy", "diagnosis", "side", "site", "skull")
"""Columns of participants.tsv of whose values every part and every fold has its share; so it has of lesion volumes."""


def image_path(participant: str, modality: str) -> str:
    """Where a subject's image lies in the cohort."""
    return f"{participant}/anat/{participant}_{modality}.nii.gz"


def mask_path(participant: str) -> str:
    """Where a patient's lesion mask lies in the cohort."""
    return f"derivatives/lesions/{participant}/anat/{participant}_label-lesion_mask.nii.gz"


def splits(
    participants: list[dict[str, object]], seed: int, shares: tuple[float, float, float]
) -> dict[str, tuple[str, int]]:
    """Split and fold of every subject: each has its share of the healthy and of the patients, and of all else.

    Subjects painted on one of several label maps stay together.
    """
    if len({row.get("anatomy") for row in participants}) > 1:
        return grouped_splits(participants, seed, shares)
    generator = np.random.default_rng([seed, 0])
    levels = attributes(participants)
    parts = apportion(levels, dict(zip(SPLITS, shares, strict=True)), generator)
    levels = [(*own, ("part", part)) for own, part in zip(levels, parts, strict=True)]
    folds = apportion(levels, dict.fromkeys(range(FOLDS), 1 / FOLDS), generator)
    names = [str(row["participant_id"]) for row in participants]
    return dict(zip(names, zip(parts, folds, strict=True), strict=True))


def attributes(participants: list[dict[str, object]]) -> list[tuple[Level, ...]]:
    """What is balanced, by participant: the values of `BALANCED` and the quarter of the volumes it belongs to."""
    volumes = [float(str(row["lesion_ml"])) for row in participants]
    limits = np.quantile([volume for volume in volumes if volume] or [0], [0.25, 0.5, 0.75])
    return [
        (
            *((name, row[name]) for name in BALANCED if name in row),
            ("volume", int(np.digitize(volume, limits)) if volume else None),
        )
        for row, volume in zip(participants, volumes, strict=True)
    ]


def grouped_splits(
    participants: list[dict[str, object]], seed: int, shares: tuple[float, float, float]
) -> dict[str, tuple[str, int]]:
    """Split and fold of every subject, where the subjects of one anatomy stay together."""
    strata = {str(row["participant_id"]): (row["healthy"], PLACES.get(str(row["side"]), "")) for row in participants}
    groups: dict[object, list[str]] = {}
    for row in participants:
        groups.setdefault(row["anatomy"], []).append(str(row["participant_id"]))
    parts = split_subjects(strata, dict(zip(SPLITS, shares, strict=True)), list(groups.values()), seed)
    folds = split_subjects(strata, dict.fromkeys(range(FOLDS), 1 / FOLDS), list(groups.values()), seed + 1)
    return {subject: (parts[subject], folds[subject]) for subject in strata}


def datalists(
    participants: list[dict[str, object]],
    modalities: tuple[str, ...],
    seed: int,
    shares: tuple[float, float, float],
) -> dict[str, dict[str, Any]]:
    """Datalists in the Decathlon's manner for the three bundles, by bundle; paths are relative to the cohort."""
    lists = {bundle: {split: [] for split in SPLITS} for bundle in ("pretrain", "classify", "segment")}
    assigned = splits(participants, seed, shares)
    for row in participants:
        subject = str(row["participant_id"])
        split, fold = assigned[subject]
        images = [image_path(subject, modality) for modality in modalities]
        case = {"image": images if len(images) > 1 else images[0], "healthy": row["healthy"], "subject": subject}
        case |= {key: row[key] for key in KEPT if key in row} | {"fold": fold}
        lists["pretrain"][split].append(case)
        lists["classify"][split].append(case | {"label": int(not row["healthy"])})
        if not row["healthy"]:
            lists["segment"][split].append(case | {"label": mask_path(subject)})
    names = {"classify": {"0": "healthy", "1": "patient"}, "segment": {"0": "background", "1": "lesion"}}
    return {bundle: ({"labels": names[bundle]} if bundle in names else {}) | own for bundle, own in lists.items()}
