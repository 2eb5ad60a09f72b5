"""`sa-swin app BIDS_DIR OUTPUT_DIR participant | group`: the BIDS App."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from custom.support.errors import UserError
from sa_swin.commands import OptionError

if TYPE_CHECKING:
    from sa_swin.app.models import Model
    from sa_swin.app.person import ScanWork
    from sa_swin.app.scans import AppScan
    from sa_swin.asymmetry.norm import Norm

LEVELS = ("participant", "group")
PARTS = ("asymmetry", "segment", "classify")
CLOSING = ("peak", "side", "alarm", "likeliest", "plane")
"""Figures of a scan that the closing table shows, besides its volumes."""


def app_command(
    bids_dir: str,
    output_dir: str,
    analysis_level: str,
    participant_label: Sequence[str] = (),
    session_label: Sequence[str] = (),
    image: Sequence[str] = (),
    weights: Sequence[str] = (),
    what: Sequence[str] = (),
    norm: str | None = None,
    modality: str | None = None,
    untrusted: str = "found",
    shard: str = "1/1",
    redo: bool = False,
    workers: int = 1,
    allow_outside: bool = False,
) -> None:
    """Run as a BIDS App: a derivatives dataset and a page for each scan; `group` makes one table and page of all.

    Without weights: the midsagittal plane, its quality, and the asymmetry map. Weights add masks and classes. What is
    finished is not done again; a scan that cannot be read is named at the end, and the exit code is 1 then. Research
    only, not for clinical use.

    Args:
        bids_dir: the BIDS dataset.
        output_dir: the derivatives dataset, such as BIDS_DIR/derivatives/sa-swin.
        analysis_level: participant, or group when all participants are done.
        participant_label: labels, with or without sub-; all by default.
        session_label: labels, with or without ses-; all by default.
        image: a choice such as T1w or acq-3d_FLAIR, one per channel of the weights; by default what they were trained
            on, the norm's sequence, or T1w.
        weights: packages of `sa-swin release`, zip or folder, or folders with model.pt, for one or both tasks; several
            of a task, as of the folds of one training, are used together.
        what: of asymmetry, segment, classify; by default the asymmetry of MR, and what there are weights for.
        norm: file of `sa-swin asymmetry norm`; the map then has z-scores, and alarms.
        modality: MR or CT, of which there are no maps; by default that of the weights, else MR.
        untrusted: a head whose plane cannot be trusted is aligned to it all the same, and the page says so (found),
            fails by name (leave_out), or is taken as it lies (as_it_lies).
        shard: I/N: the I-th of N shares of the scans, for tasks of an array.
        redo: do finished scans again.
        workers: processes, for all but the networks.
        allow_outside: read files outside of bids_dir, too, that symlinks lead to.
    """
    if analysis_level not in LEVELS:
        raise OptionError(f"the level of analysis is one of {', '.join(LEVELS)}; got {analysis_level!r}")
    dataset, output = (Path(os.path.abspath(folder)) for folder in (bids_dir, output_dir))
    if analysis_level == "group":
        sys.exit(_group(output))
    if unknown := set(what) - set(PARTS):
        raise OptionError(f"--what takes {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    if output == dataset:
        raise OptionError("OUTPUT_DIR is BIDS_DIR itself; give BIDS_DIR/derivatives/sa-swin, or a folder elsewhere")
    from sa_swin.app.dataset import WORK, start_dataset
    from sa_swin.app.scans import app_scans, share
    from sa_swin.asymmetry.norm import load_norm

    healthy = load_norm(norm) if norm else None
    work = output / WORK / shard.replace("/", "of")
    if redo:
        shutil.rmtree(work, ignore_errors=True)
    with ExitStack() as undo:
        undo.callback(clear, work)
        models = wanted_models(weights, what, work)
        channels = wanted_images(image, models, healthy)
        found, left_out = app_scans(dataset, channels, participant_label, session_label, allow_outside)
        undo.pop_all()
    for row in left_out:
        sys.stderr.write(f"left out: {row['subject']}: {row['reason']}\n")
    own = share(found, shard)
    start_dataset(output, dataset)
    person = work_of(dataset, output, models, what, healthy, kind_of(models, modality), untrusted)
    summaries = results(person, own, work, workers, redo, allow_outside)
    clear(work)
    print(closing_table(own, summaries))
    sys.exit(any(summary["status"] != "done" for summary, _ in summaries.values()))


def clear(work: Path) -> None:
    """Remove a run's work, and what is empty without it: another task of the array may work beside it."""
    shutil.rmtree(work, ignore_errors=True)
    for folder in (work.parent, work.parent.parent):
        with suppress(OSError):
            folder.rmdir()


def _group(output: Path) -> bool:
    """Write the table and the page of all; whether any scan failed."""
    from sa_swin.app.group import write_group

    failed = write_group(output)
    print(output / "group.html")
    return bool(failed)


def wanted_models(weights: Sequence[str], what: Sequence[str], work: Path) -> dict[str, "Model"]:
    """The weights that are asked for, by task.

    Raises:
        OptionError: none for a task that is asked for.
    """
    from sa_swin.app.models import load_model, together

    models: dict[str, Model] = {}
    for model in (load_model(path, work) for path in weights):
        models[model.task] = together(models[model.task], model) if model.task in models else model
    if missing := set(what) - {"asymmetry"} - models.keys():
        raise OptionError(f"--what {' and '.join(sorted(missing))} needs --weights for it")
    return {task: model for task, model in models.items() if not what or task in what}


def wanted_images(image: Sequence[str], models: Mapping[str, "Model"], healthy: "Norm | None") -> tuple[str, ...]:
    """The choice of each channel's image: what was asked for, what weights or norm were made from, or T1w.

    Raises:
        OptionError: weights of another number of channels.
    """
    trained = [tuple(model.settings.get("sequences") or ()) for model in models.values()]
    norm = (healthy.settings.get("sequence"),) if healthy else ()
    channels = tuple(image) or next(told for told in (*trained, norm, ("T1w",)) if told and all(told))
    for model in models.values():
        if (count := model.settings.get("in_channels", 1)) != len(channels):
            raise OptionError(f"{model.checkpoints[0]} takes {count} channel(s), the images are {', '.join(channels)}")
        warn_of_others(channels, model.settings.get("sequences") or (), f"{model.checkpoints[0]} was trained on")
    warn_of_others(channels, norm, "the norm was made of")
    return channels


def warn_of_others(channels: Sequence[str], expected: Sequence[str | None], made: str) -> None:
    """Warn of channels that are of another sequence than what they are used with."""
    for number, (name, own) in enumerate(zip(channels, expected, strict=False), 1):
        if own and name.split("_")[-1].lower() != own.split("_")[-1].lower():
            sys.stderr.write(f"warning: channel {number} is {name}; {made} {own}\n")


def kind_of(models: Mapping[str, "Model"], modality: str | None) -> str:
    """`MR` or `CT`: that of the weights, or what was given.

    Raises:
        OptionError: neither, or both.
    """
    kinds = {model.settings.get("modality", "MR") for model in models.values()} | ({modality} if modality else set())
    if len(kinds) > 1:
        raise OptionError("weights and --modality are of MR and of CT; run them one after the other, into two folders")
    if not kinds <= {"MR", "CT"}:
        raise OptionError(f"--modality takes MR or CT; got {modality!r}")
    return next(iter(kinds), "MR")


def work_of(
    dataset: Path,
    output: Path,
    models: Mapping[str, "Model"],
    what: Sequence[str],
    healthy: "Norm | None",
    modality: str,
    untrusted: str,
) -> "ScanWork":
    """The work on a scan.

    Raises:
        OptionError: a map of CT, or no way to handle planes that cannot be trusted.
    """
    from custom.alignment.grid import UNTRUSTED
    from sa_swin.app.dataset import generator
    from sa_swin.app.person import ScanWork
    from sa_swin.asymmetry.case import Reading, checked_grid
    from sa_swin.asymmetry.command import SPACING, SPATIAL_SIZE

    mapped = "asymmetry" in what if what else modality == "MR"
    if mapped and modality != "MR":
        raise OptionError("--what asymmetry is for MR, and this is CT")
    if untrusted not in UNTRUSTED:
        raise OptionError(f"--untrusted takes {', '.join(UNTRUSTED)}; got {untrusted!r}")
    grid = healthy.settings if healthy else {"spacing": SPACING, "spatial_size": SPATIAL_SIZE}
    reading = Reading(*checked_grid(grid["spacing"], grid["spatial_size"]), untrusted=untrusted, modality=modality)
    content = [
        generator(),
        str(reading),
        mapped,
        healthy and healthy.digest(),
        sorted((*m.digests, m.figures()) for m in models.values()),
    ]
    settings = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
    return ScanWork(dataset, output, reading, mapped, healthy, settings, models)


def results(
    person: "ScanWork", scans: Sequence["AppScan"], work: Path, workers: int, redo: bool, allow_outside: bool
) -> dict[str, tuple[dict[str, Any], bool]]:
    """The summary of each scan by its name, and whether it was done before."""
    from dataclasses import replace

    from sa_swin.app.models import predict
    from sa_swin.asymmetry.command import done

    refuse_other_images(person, scans)
    found = {scan.name: known for scan in scans if not redo and (known := person.finished(scan))}
    missing = [scan for scan in scans if scan.name not in found]
    said = {}
    for task, model in person.models.items() if missing else ():
        said[task] = predict(model, missing, person.dataset, work, person.reading.untrusted, allow_outside)
    summaries = {name: (summary, True) for name, summary in found.items()}
    for number, summary in done(missing, replace(person, predictions=said), workers):
        summaries[missing[number].name] = (summary, False)
    return summaries


def refuse_other_images(person: "ScanWork", scans: Sequence["AppScan"]) -> None:
    """Refuse an output folder that holds the results of other images under the same names.

    Raises:
        UserError: with the images of both.
    """
    from custom.data.folders import stem_of

    for scan in scans:
        told, own = person.known(scan).get("sources", scan.images), scan.images
        if [stem_of(image) for image in told] != [stem_of(image) for image in own]:
            raise UserError(
                f"{person.output} holds the results of {' and '.join(told)}, which those of {' and '.join(own)} would "
                "replace; give another output folder"
            )


def closing_table(scans: Iterable["AppScan"], summaries: Mapping[str, tuple[dict[str, Any], bool]]) -> str:
    """A line per scan: done now, done before, or failed and why."""
    from custom.evaluation.batch_inference import in_columns
    from sa_swin.app.group import flat
    from sa_swin.report.html import short

    lines, good = [["scan", "state", *CLOSING, "volumes", ""]], 0
    for scan in scans:
        summary, before = summaries[scan.name]
        row, fine = flat(summary), summary["status"] == "done"
        good += fine
        volumes = " ".join(
            f"{lesion['class']} {short(lesion['volume_ml'])} ml" for lesion in summary.get("lesions", ())
        )
        state = "failed" if not fine else "done before" if before else "done"
        lines.append([scan.name, state, *(short(row.get(name, "")) for name in CLOSING), volumes, row["reason"]])
    kept = [i for i in range(len(lines[0])) if i < 2 or any(line[i] for line in lines[1:])]
    text = in_columns([[line[i] for i in kept] for line in lines])
    return "\n".join([*text, f"{good} of {len(lines) - 1} scans done"])
