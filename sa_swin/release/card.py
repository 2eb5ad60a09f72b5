"""The model card of a package: the bundle's `docs/README.md`, filled from the run that made its weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sa_swin.bootstrap import LEVEL, NUM_RESAMPLES
from sa_swin.release.configs import NOT_OF_THE_WEIGHTS
from sa_swin.release.errors import ReleaseError
from sa_swin.release.evaluation import Evaluation, is_count
from sa_swin.release.onnx_export import OnnxModel

HEADINGS = (
    "Model overview", "Data", "Preprocessing", "Training configuration", "Input", "Output", "Performance",
    "Commands", "Limitations", "References", "License",
)  # fmt: skip
"""Those of the Model Zoo's model cards."""

INPUT_CONTRACT = ("modality", "in_channels", "spacing", "spatial_size", "roi_size", "counterpart", "asymmetry_map")
SYNTHETIC = (
    "These weights were trained on synthetic data: heads painted by `sa-swin phantom`, no patients. They have not "
    "seen a real image, and their figures say nothing about real ones."
)


@dataclass(frozen=True)
class CardFacts:
    """What a card says of a package.

    Args:
        name: of the bundle.
        version, commit, monai: it was cut from and made with.
        settings: of the training.
        trained_on: `synthetic`, a sentence, or None where nothing is known.
        evaluation: None where there is none.
        onnx: None where there is no export.
    """

    name: str
    version: str
    commit: str
    monai: str
    settings: Mapping[str, Any]
    trained_on: str | None
    evaluation: Evaluation | None
    onnx: OnnxModel | None


def fill(text: str, facts: CardFacts) -> str:
    """The card as it goes into the package.

    Args:
        text: the bundle's `docs/README.md`, with the headings of `HEADINGS`.
        facts: of the package.

    Raises:
        ReleaseError: when a heading is missing.
    """
    parts = re.split(rf"^# ({'|'.join(HEADINGS)})$", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    if missing := [heading for heading in HEADINGS if heading not in sections]:
        raise ReleaseError(f"docs/README.md of {facts.name} lacks the headings {', '.join(missing)}")
    sections["Model overview"] = (
        f"{sections['Model overview'].strip()}\n\nVersion {facts.version}, cut from commit {facts.commit}."
    )
    sections["Data"] = sections["Data"].replace(" No weights trained on patients come with this bundle.", "")
    for heading, text in (
        ("Data", _trained_on(facts)),
        ("Preprocessing", _contract(facts)),
        ("Training configuration", _training(facts)),
        ("Output", _files(facts)),
    ):
        sections[heading] = f"{sections[heading].strip()}\n\n{text}"
    sections["Performance"] = _performance(facts)
    sections["Commands"] = _commands(sections["Commands"], facts)
    return "\n".join(f"# {heading}\n\n{content.strip()}\n" for heading, content in sections.items())


def _trained_on(facts: CardFacts) -> str:
    if facts.trained_on == "synthetic":
        return SYNTHETIC
    return facts.trained_on or "What these weights were trained on was not recorded."


def _contract(facts: CardFacts) -> str:
    rows = {name: facts.settings[name] for name in INPUT_CONTRACT if name in facts.settings}
    return "The values of these weights (mm and voxels), as in `configs/*.yaml`:\n\n" + _table(rows)


def _training(facts: CardFacts) -> str:
    left_out = {*NOT_OF_THE_WEIGHTS, *INPUT_CONTRACT}
    rows = {name: value for name, value in facts.settings.items() if name not in left_out and name[:1] != "_"}
    return "The settings of these weights:\n\n" + _table(rows)


def _table(rows: Mapping[str, Any]) -> str:
    return "| setting | value |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def _files(facts: CardFacts) -> str:
    text = (
        "`models/model.pt` and `models/model.safetensors` hold the same tensors, flat. The index buffers of "
        "MONAI's window attention are not among them: they follow from the window size. Both carry salted hashes of "
        "the subjects and images that the weights have seen, by which an evaluation refuses them."
    )
    if facts.onnx is None:
        return text + "\n\nThis package comes without an ONNX file."
    shape = " x ".join(map(str, facts.onnx.shape))
    return text + (
        f"\n\n`models/model.onnx` is the network alone, for an input `image` of {shape}, a batch of one; pre- and "
        f"postprocessing are not in it. Largest difference from PyTorch on a random input: "
        f"{facts.onnx.difference:.1e}, at outputs up to {facts.onnx.largest:.2g} (onnxruntime, CPU)."
    )


def _performance(facts: CardFacts) -> str:
    if facts.evaluation is None:
        return "These weights were not evaluated when the package was made; no figures are claimed."
    lines = ["| figure | value | 95 % interval | n |", "|---|---|---|---|"]
    figures = facts.evaluation.metrics
    for name, value in figures.items():
        if is_count(name):
            continue
        low, high = facts.evaluation.intervals.get(name, (None, None))
        interval = "" if low is None else f"{low:.3g} to {high:.3g}"
        lines.append(f"| {name} | {value:.3g} | {interval} | {figures.get(f'n_{name}', figures['n']):.0f} |")
    counts = ", ".join(f"{name} = {value:.0f}" for name, value in figures.items() if is_count(name))
    section = facts.evaluation.context.get("section", "testing")
    warning = f" {SYNTHETIC}" if facts.trained_on == "synthetic" else ""
    leakage = facts.evaluation.context.get("leakage", {}).get("verdict", "not examined")
    return (
        "\n".join(lines)
        + f"\n\nMeasured by `configs/evaluate.yaml` on the held-out list `{section}` ({counts}). Intervals: "
        f"percentiles of {NUM_RESAMPLES} bootstrap resamples of the cases ({100 * LEVEL:.0f} %), for one training; the "
        f"spread over trainings is not in them.{warning}\n\nLeakage: {leakage}."
    )


def _commands(text: str, facts: CardFacts) -> str:
    text = text.replace(f"B=bundles/{facts.name}", f"B={facts.name}").replace(" --bundle_root $B", "")
    return f"""{text.rstrip()}

Nothing but MONAI {facts.monai} and the packages that `configs/metadata.json` names is needed; the code is in `custom/`.
The workflows find the package wherever it lies. Tools that build the network alone (`verify_net_in_out`, `onnx_export`)
take `--bundle_root $B`. From Python:

```python
import monai.bundle
network = monai.bundle.load("{facts.name}", bundle_dir="FOLDER_WHERE_THE_PACKAGE_LIES")
```

`monai.bundle ckpt_export` needs `--use_trace True`, and the result takes only the size in the metadata. Its default,
`torch.jit.script`, cannot take the encoder: windows are laid out by NumPy, and gradients recomputed by
`torch.utils.checkpoint`, for which it refuses MONAI's Swin UNETR, too, which the zoo lists as without TorchScript.
Checksums: `sha256sum --check SHA256SUMS`, or
`sa-swin release verify .`, in the package.
"""
