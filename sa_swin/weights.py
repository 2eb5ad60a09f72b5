"""`sa-swin weights convert | pack | calibrate`: published weights, weights to hand on, intervals with a coverage."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def convert(source: str, to: str, output: str, in_channels: int = 1) -> None:
    """Convert a checkpoint, and print what matched, what was reshaped and what was left.

    Understood are MONAI's Swin UNETR and its self-supervised encoders (model_swinvit.pt), Swin UNETR checkpoints in
    the style of BrainSegFounder, the reference repository's, our own, and safetensors of any of them.

    Args:
        source: .pt, .pth or .safetensors; only tensors are ever unpickled.
        to: encoder, pretrain, classify or segment.
        output: .pt or .safetensors; for training with --pretrained OUTPUT.
        in_channels: of the image, without its mirrored counterpart.
    """
    from custom.weights.conversion import convert_file  # the networks, which take seconds to import

    sys.stdout.write(convert_file(Path(source), to, Path(output), in_channels))


def pack(source: str, output: str) -> None:
    """Write what fine-tuning takes over from a pretraining, in half precision, and print the file's SHA-256.

    That is the encoder, the cross-attention and, where the pretraining has them, the segmenter's decoder and last
    layers; with the settings of the training, and what it has seen.

    Args:
        source: model.pt of a pretraining.
        output: .safetensors, for training with --pretrained OUTPUT.
    """
    import hashlib

    from safetensors.torch import save

    from custom.support.files import write_whole
    from custom.weights.provenance import records_of
    from custom.weights.settings import as_metadata, settings_in
    from custom.weights.transfer import DENSE, PRETRAINED_PARTS, is_index, load_checkpoint

    kept = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in load_checkpoint(source).items()
        if name.startswith((*PRETRAINED_PARTS, *DENSE)) and not is_index(name)
    }
    content = save(kept, metadata=as_metadata(seen=records_of(source), settings=settings_in(source) or {}))
    write_whole(Path(output), content)
    size, digest = len(content) / 1e6, hashlib.sha256(content).hexdigest()
    sys.stdout.write(f"{output}: {len(kept)} tensors, {size:.1f} MB\nSHA-256 {digest}\n")


def calibrate(evaluations: Sequence[str], output: str, coverage: float = 0.9) -> None:
    """Write what predictions need to give intervals of volumes, and sets of sides and classes, with a coverage.

    Split-conformal: from evaluations of cases that no training saw, such as `sa-swin evaluate segment --section
    validation --fold 0 ...` of each fold's weights, which are then used together. A figure that too few tell of
    (at 90 %, fewer than 9 subjects) is not given. Research only.

    Args:
        evaluations: output folders of evaluations, all of one bundle.
        output: conformal.json, best beside the first of the weights, where predictions look for it.
        coverage: share of cases whose truth is to lie within, 0.5 to below 1.
    """
    from custom.evaluation.conformal import fit
    from custom.support.files import write_whole

    folders = [Path(folder) for folder in evaluations]
    rows, digests = measured(folders)
    figures = fit(rows, coverage) | {"cases": len(rows), "weights_sha256": digests, "settings": settings_of(folders)}
    write_whole(Path(output), json.dumps(figures, indent=2, allow_nan=False) + "\n")
    sys.stdout.write("\n".join([*summary(figures), output]) + "\n")


def measured(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """The cases of evaluations whose planes can be trusted, and the SHA-256 of the weights that were measured.

    Raises:
        UserError: no evaluation, one of cases that the weights saw, or a case in two of them.
    """
    from custom.evaluation.conformal import as_list
    from custom.support.errors import UserError
    from sa_swin.release.evaluation import read_cases

    rows: dict[str, dict[str, Any]] = {}
    digests: list[str] = []
    for folder in folders:
        try:
            report, own = json.loads((folder / "cases.json").read_text()), read_cases(folder / "cases.csv")
            seen, found = report["leakage"]["cases_seen_with_label"], as_list(report["weights_sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} holds no evaluation (cases.json, cases.csv): {error}") from error
        if seen:
            raise UserError(f"{folder}: {seen} cases were seen in training: their errors tell nothing of those to come")
        if twice := sorted(rows.keys() & {row["image"] for row in own}):
            raise UserError(f"{twice[0]} is in two evaluations; a case counts once: evaluate these weights together")
        rows |= {row["image"]: row for row in own if not isinstance(row.get("plane_reason"), str)}
        digests += [digest for digest in found if digest not in digests]
    return list(rows.values()), digests


def settings_of(folders: Sequence[Path]) -> dict[str, Any]:
    """The settings that the figures of evaluations depend on, from what is recorded of their runs.

    Raises:
        UserError: no such record, or evaluations that were made with different ones.
    """
    from custom.evaluation.conformal import HOW, differing
    from custom.support.errors import UserError

    found: dict[str, Any] = {}
    for folder in folders:
        try:
            own = json.loads((folder / "run_evaluate.json").read_text())["settings"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} does not say how it was evaluated (run_evaluate.json): {error}") from error
        if other := differing(found, own):
            raise UserError(f"{folder} is of other {other} than {folders[0]}: evaluate with the same")
        found |= {name: own[name] for name in HOW if name in own}
    return found


def summary(figures: dict[str, Any]) -> list[str]:
    """What was found, a line each."""
    lines = [
        f"{figures['subjects']} subjects, {figures['cases']} cases, {figures['coverage']:.0%} asked; research only"
    ]
    for index, found in figures.get("lesions", {}).items():
        volume, side = found["volume"]["radius"], found["side"]["radius"]
        factor = "too few subjects" if volume is None else f"within a factor of {math.exp(volume):.2f} (of ml + 1)"
        apart = "too few subjects" if side is None else f"asymmetry index within {side:.2f}"
        lines.append(f"class {index}: volume {factor}; side: {apart}, {found['side']['subjects']} subjects")
    for index, found in enumerate(figures.get("classes", ())):
        least = (
            "too few subjects" if found["radius"] is None else f"in the set from probability {1 - found['radius']:.3f}"
        )
        lines.append(f"class {index}: {least}, {found['subjects']} subjects")
    return lines
