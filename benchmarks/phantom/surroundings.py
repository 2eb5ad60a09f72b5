"""Does what surrounds a lesion painted on a real head give it away to a network that sees nothing else?

    python -m benchmarks.phantom.surroundings --images ../shared/data/cohorts/ixi --lesions ../shared/data/lesions

Every patient is held against the same person without the lesion, so that nothing but the painting differs; a network
of a cube around the lesion, with the lesion and a margin blanked in both, is tested on persons that it was not trained
on. Two controls say what it can find: the lesion not blanked, and a trace on purpose, the patient's cube smoothed.
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from monai.networks.nets import Classifier
from scipy import ndimage
from sklearn.model_selection import KFold
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.asymmetry import run_of
from custom.support.files import write_whole
from sa_swin.phantom.config import Config
from sa_swin.phantom.person import make_person
from sa_swin.phantom.subject import Subject

SIDE_MM, VOXELS = 60.0, 24
"""Of the cube around the lesion's centre."""
MARGIN_MM = 6.0
"""Around the lesion, blanked with it: what resampling and the lesion's soft edge reach."""
TRACE_MM = 1.0
"""Standard deviation of the Gaussian that leaves a trace on purpose, 0.4 voxels."""
FOLDS, EPOCHS, BATCH, RATE = 4, 60, 8, 1e-3


@dataclass(frozen=True)
class Pair:
    """A person with and without a painted lesion, cubes of `VOXELS`.

    Args:
        patient: with the lesion.
        healthy: the same without.
        lesion: its mask, without a margin.
        finding: tumour, infarct or haemorrhage.
    """

    patient: np.ndarray
    healthy: np.ndarray
    lesion: np.ndarray
    finding: str


def cube(image: nib.Nifti1Image, centre: np.ndarray, order: int) -> np.ndarray:
    """`(VOXELS, VOXELS, VOXELS)` around a place of the world, in its axes."""
    steps = (np.arange(VOXELS) - (VOXELS - 1) / 2) * SIDE_MM / VOXELS
    points = centre + np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1)
    voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), points)
    return ndimage.map_coordinates(np.asarray(image.dataobj, dtype=np.float32), np.moveaxis(voxels, -1, 0), order=order)


def pair_of(patient: Subject, healthy: Subject) -> Pair:
    """The cubes around a patient's lesion; intensities in units of the brightest half of the healthy cube."""
    mask = patient.mask
    inside = np.argwhere(np.asarray(mask.dataobj) > 0)
    centre = nib.affines.apply_affine(mask.affine, inside.mean(axis=0))
    images = [cube(subject.images["T1w"], centre, 1) for subject in (patient, healthy)]
    unit = float(np.mean(images[1][images[1] > np.median(images[1])]))
    finding = str(patient.participant["diagnosis"])
    return Pair(images[0] / unit, images[1] / unit, cube(mask, centre, 1) > 0.01, finding)


def samples(pairs: Sequence[Pair], condition: str) -> Tensor:
    """`(N, 2, 1, VOXELS, VOXELS, VOXELS)`: every person with and without the lesion."""
    found = []
    for pair in pairs:
        blank = ndimage.distance_transform_edt(~pair.lesion) * SIDE_MM / VOXELS <= MARGIN_MM
        halves = [pair.patient, pair.healthy]
        if condition == "trace":
            halves[0] = ndimage.gaussian_filter(pair.healthy, TRACE_MM * VOXELS / SIDE_MM)
        found += [half if condition == "lesion" else np.where(blank, 0, half) for half in halves]
    return torch.from_numpy(np.stack(found).astype(np.float32)).reshape(len(pairs), 2, 1, *(3 * [VOXELS]))


def scores_of(images: Tensor, train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """What a small network says of some people, `(N, 2)`, that was taught to score others higher with their lesion.

    Args:
        images: `(N, 2, 1, VOXELS, VOXELS, VOXELS)`, of each person with and without.
        train: people.
        test: other people.
        seed: of the training.
    """
    torch.manual_seed(seed)
    network = Classifier((1, VOXELS, VOXELS, VOXELS), 1, channels=(8, 16, 32), strides=(2, 2, 2))
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-2)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(train)).split(BATCH):
            axes = [axis for axis in (3, 4, 5) if torch.rand(()) < 0.5]
            own = images[torch.as_tensor(train)[chosen]].flip(axes)
            ill, well = network(own.flatten(0, 1)).reshape(-1, 2).unbind(1)
            loss = nn.functional.softplus(well - ill).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        return network(images[torch.as_tensor(test)].flatten(0, 1)).reshape(-1, 2).numpy()


def shares_told(pairs: Sequence[Pair], condition: str, seed: int) -> dict[str, float]:
    """Share of people who are told from themselves without the lesion, of all and of each finding; a tie is half."""
    images, found = samples(pairs, condition), np.zeros((len(pairs), 2))
    for train, test in KFold(FOLDS, shuffle=True, random_state=0).split(found):
        found[test] = scores_of(images, train, test, seed)
    told = (found[:, 0] > found[:, 1]) + 0.5 * (found[:, 0] == found[:, 1])
    kinds = np.array([pair.finding for pair in pairs])
    return {"all": float(told.mean())} | {str(kind): float(told[kinds == kind].mean()) for kind in np.unique(kinds)}


def as_markdown(content: dict[str, Any]) -> str:
    """The table of a result."""
    lines = ["# What surrounds a painted lesion", "", content["run"], "", content["about"], ""]
    names = list(next(iter(content["told"].values()))[0])
    counted = " | ".join(f"{name} (n = {content['n'][name]})" for name in names)
    lines += [f"| the network sees | {counted} |", "|---" * (len(names) + 1) + "|"]
    for condition, rows in content["told"].items():
        values = (
            f"{np.mean(own):.2f} ({min(own):.2f}-{max(own):.2f})" for own in ([r[n] for r in rows] for n in names)
        )
        lines.append(f"| {condition} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def main(images: str, lesions: str, subjects: int = 64, seeds: int = 1, output: str = "benchmarks/results") -> None:
    """Paint, train, and write surroundings_<date>.json and .md.

    Args:
        images: BIDS folder of healthy people's T1w images.
        lesions: folder of lesion masks.
        subjects: people, of whom half are painted.
        seeds: trainings.
        output: folder of the results.
    """
    torch.set_num_threads(1)
    findings = ("tumour", "infarct", "haemorrhage")
    config = Config(subjects, findings=findings, bilateral=0.25, midline=0.1, images=images, lesions=lesions)
    numbers = tqdm(range(2, subjects + 1, 2), "painting", disable=None)
    pairs = [pair_of(make_person(config, number), make_person(config, number, healthy=True)) for number in numbers]
    what = {"the surroundings": "surroundings", "the lesion, too": "lesion", "a trace left on purpose": "trace"}
    told = {words: [shares_told(pairs, name, seed) for seed in range(seeds)] for words, name in what.items()}
    counts = {kind: sum(pair.finding == kind for pair in pairs) for kind in findings}
    about = (
        f"Share of {len(pairs)} people of {Path(images).name} who are told from themselves without the painted lesion, "
        f"{FOLDS} folds of people; mean and range of the trainings ({seeds}). A cube of {SIDE_MM:g} mm, lesion and "
        f"{MARGIN_MM:g} mm around it blanked in both. Research only."
    )
    content = {"run": run_of(), "about": about, "n": {"all": len(pairs)} | counts, "told": told}
    path = Path(output) / f"surroundings_{datetime.date.today()}"
    write_whole(path.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    write_whole(path.with_suffix(".md"), as_markdown(content))


if __name__ == "__main__":
    fire.Fire(main)
