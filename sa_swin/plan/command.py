"""`sa-swin plan`: a small layer over a bundle's train.yaml that fits a cohort and a device."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from monai.utils import ensure_tuple

from custom.support.errors import UserError
from custom.support.files import write_whole
from sa_swin.plan import choice
from sa_swin.plan.cohort import TASKS, Fingerprint, look_at
from sa_swin.plan.host import host_memory
from sa_swin.plan.trial import MARGIN, Need, measured, need

GB = 2**30
TRIED = 64
"""Voxels of a side that a trial training sees."""
COARSE = 4.0
"""mm, of a trial that sees a whole volume of so few voxels."""
Lines = dict[str, tuple[Any, str]]
"""Value and reason of each knob."""


def plan_command(
    dataset: str,
    task: str = "segment",
    memory: float | None = None,
    device: str | None = None,
    output: str = "plan.yaml",
    datalist: str | None = None,
    feature_size: int = 48,
    spacing: float | None = None,
    asymmetry_map: bool | None = None,
    allow_outside: bool = False,
) -> None:
    """Look at a cohort and the device, and write the settings of a training that fits, with the reason of each.

    Use the file as `sa-swin train segment --plan plan.yaml ...`. Up to 32 cases are read. Memory is measured by short
    trainings on the largest of them, in processes of their own, on the device that the plan is for; where that is a GPU
    which is not here, on the CPU, whose single precision takes more. That lasts some minutes.

    Args:
        dataset: folder of the cohort, with datalists/ as `sa-swin cohort build` or `sa-swin prepare` leaves it.
        task: segment, classify or pretrain.
        memory: GB that the training may take, of the GPU or of the host; by default the GPU's, or most of the host's,
            of which a container or a job may have less.
        device: cpu or cuda; by default the GPU where torch finds one.
        output: the YAML file.
        datalist: JSON; by default DATASET/datalists/<task>.json.
        feature_size: channels of the encoder's first stage.
        spacing: mm, instead of the one that follows from the files.
        asymmetry_map: plan for a network that sees it (MR), as weights that saw it do; by default a classifier of MR,
            of which the plan says nothing, for weights that a training starts from decide it.
        allow_outside: read files outside of DATASET, too, where absolute paths, .. and symlinks may lead; so does the
            training with this plan.
    """
    if task not in TASKS or device not in (None, "cpu", "cuda"):
        raise UserError(f"task must be one of {', '.join(TASKS)}, device cpu or cuda; got {task} and {device}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    root, lists = Path(dataset), Path(datalist) if datalist else Path(dataset) / "datalists" / f"{task}.json"
    limit = GB * memory if memory else device_memory(device)
    cohort = look_at(lists, root, task, allow_outside)
    lines = data_lines(task, cohort, spacing) | {"feature_size": (feature_size, "as asked for; the default is 48")}
    if asymmetry_map and cohort.modality != "MR":
        raise UserError(f"asymmetry_map is for MR; {lists} lists {cohort.modality}")
    if asymmetry_map is not None:
        lines["asymmetry_map"] = (asymmetry_map, "as asked for; it is a channel beside the image's")
    if allow_outside:
        lines["allow_outside"] = (True, "as asked for")
    settings = {name: value for name, (value, _) in lines.items()}
    finest = min(ensure_tuple(settings["spacing"]))
    roi = choice.roi_of(task, cohort, finest, settings["spatial_size"])
    once, tried = trial_settings(task, settings, roi)

    @cache
    def need_of(recomputed: bool) -> Need:
        trial = once | {"use_checkpoint": recomputed}
        where = "cuda" if device == "cuda" and torch.cuda.is_available() else "cpu"
        return need(lambda batch: measured(task, trial, cohort.largest, root, where, batch), tried)

    found = choice.chosen(task, roi, cohort.training, need_of, limit)
    lines |= training_lines(task, found, limit, need_of(found.recomputed), tried)
    mapped = task == "classify" and cohort.modality == "MR" if asymmetry_map is None else asymmetry_map
    lines |= host_lines(task, cohort, settings | {"asymmetry_map": mapped}, device, limit - found.bytes)
    about = f"{cohort.training} training and {cohort.validation} validation cases of {lists}, {len(cohort.sizes)} read"
    write_whole(Path(output), as_yaml(task, about, lines))
    print(f"wrote {output}; train with: sa-swin train {task} --plan {output} --dataset_dir {dataset}")


def trial_settings(task: str, settings: Mapping[str, Any], roi: Sequence[int]) -> tuple[dict[str, Any], int]:
    """Settings of a trial training that sees less, and how many voxels it sees of a volume."""
    tried = [min(TRIED, side) for side in roi]
    if task == "classify":  # sees whole volumes, so a coarse one, which a prepared cohort does not have
        sizes = {"spatial_size": tried, "spacing": COARSE, "align": True}
    else:
        sizes = {"roi_size": tried, "num_samples": 1, "overlap": 0.0}
    return {**settings, **sizes}, math.prod(tried)


def device_memory(device: str) -> int:
    """Bytes of the GPU, or most of the host's."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no GPU here; say how many GB it has with --memory")
    return torch.cuda.get_device_properties(0).total_memory if device == "cuda" else host_memory()


def data_lines(task: str, cohort: Fingerprint, spacing: float | None) -> Lines:
    """What follows from the cohort alone."""
    lines: Lines = {
        "modality": (cohort.modality, "by the names of the files"),
        "in_channels": (cohort.in_channels, "files per case"),
    }
    if task != "pretrain":
        where = "labels of the datalist" if task == "classify" else "largest value of the masks that were read, and 1"
        lines["num_classes"] = (cohort.classes, where)
    elif not cohort.healthy:
        lines["objective"] = ("label_free", "the datalist does not say who is healthy")
    if cohort.prepared:
        made = "as sa-swin prepare made them"
        grid = {name: (cohort.prepared[name], made) for name in ("spacing", "spatial_size")}
        return lines | grid | {"align": (False, "sa-swin prepare has aligned them")}
    chosen = spacing or choice.spacing_of(cohort)
    lesions = cohort.lesions
    small = f", a tenth of the lesions is narrower than {lesions[0]:.0f} mm" if lesions else ""
    why = f"mm; voxels of the files are like cubes of {cohort.side:.1f} mm (median){small}"
    size = choice.spatial_size_of(cohort, chosen)
    heads = " x ".join(f"{side:.0f}" for side in cohort.head[:2])
    return lines | {
        "spacing": (chosen, "mm, as asked for" if spacing else why),
        "spatial_size": (list(size), f"multiples of 32; the widest and the longest head: {heads} mm"),
    }


def training_lines(task: str, found: choice.Choice, limit: float, measured_need: Need, tried: int) -> Lines:
    """What fits into the memory."""
    takes = f"{found.bytes / GB:.1f} of {limit / GB:.1f} GB"
    basis = f"measured {(measured_need.fixed + measured_need.voxel * tried) / GB:.2f} GB at {tried} voxels"
    lines: Lines = {}
    if task != "classify":
        lines["roi_size"] = (list(found.roi_size), "what the network sees: 96, more for large lesions, less for memory")
        lines["num_samples"] = (found.num_samples, "ROIs per volume")
    lines["batch_size"] = (found.batch_size, f"volumes; takes {takes}, {MARGIN:.2f} x a line through: {basis}")
    why = "activations are computed twice, or it would not fit" if found.recomputed else "it fits without"
    return lines | {"use_checkpoint": (found.recomputed, why)}


def host_lines(task: str, cohort: Fingerprint, settings: Mapping[str, Any], device: str, rest: float) -> Lines:
    """What is kept in the host's memory: on a CPU what the training leaves, beside a GPU the host's own."""
    room = rest if device == "cpu" else host_memory()
    channels = 2 * (cohort.in_channels + settings.get("asymmetry_map", False)) + (task == "segment")
    volume = 4 * channels * math.prod(settings["spatial_size"])
    wanted = volume * (cohort.training + cohort.validation)
    rate = min(1.0, math.floor(100 * room / MARGIN / wanted) / 100)
    lines: Lines = {"cache_rate": (rate, f"all prepared cases take {wanted / GB:.1f} GB; there are {room / GB:.1f} GB")}
    if device == "cpu":
        lines["num_workers"] = (0, "each would take memory beside the training's")
    return lines


def as_yaml(task: str, about: str, lines: Lines) -> str:
    """The layer, one commented line per knob."""
    texts = {name: f"{name}: {_text(value)}" for name, (value, _) in lines.items()}
    width = max(map(len, texts.values()))
    body = [f"{texts[name]:<{width}}  # {reason}" for name, (_, reason) in lines.items()]
    head = f"# Plan for sa-swin train {task}: {about}.\n# Weights to start from bring sizes of their own: with "
    return head + "--pretrained, delete those lines.\n" + "\n".join(body) + "\n"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
