"""From a bundle at a commit, and a checkpoint, to `<name>.zip`."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.utils import ensure_tuple_rep
from torch import nn

from custom.evaluation.conformal import FILE, read_figures
from custom.support.vendored import code_digest
from custom.weights.provenance import records_of
from custom.weights.settings import channels_of, task_of
from custom.weights.transfer import load_checkpoint, weights_digest
from sa_swin.release import card, model, source
from sa_swin.release.archive import CHECKSUMS, checksums, write_zip
from sa_swin.release.configs import json_twin, packaged
from sa_swin.release.errors import ReleaseError
from sa_swin.release.evaluation import Evaluation, read_evaluation
from sa_swin.release.metadata import check_changelog, fitted
from sa_swin.release.onnx_export import OnnxModel, export
from sa_swin.release.privacy import check_privacy

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What goes into a package besides the bundle.

    Args:
        weights: checkpoint, `.pt` or `.safetensors`.
        evaluation: output folder of an evaluation of these weights, or None.
        settings: JSON file of settings, or None for those that the weights carry.
        trained_on: `synthetic`, or a sentence on the training data, or None.
        url: where the files of `models/` will be served, or None.
        onnx: whether to export the network.
    """

    weights: Path
    evaluation: Path | None = None
    settings: Path | None = None
    trained_on: str | None = None
    url: str | None = None
    onnx: bool = True


def build(root: Path, bundle: str, options: Options, output: Path, say: Say = lambda text: None) -> Path:
    """Build a package and return its path.

    Args:
        root: of the git checkout.
        bundle: name of a folder in `bundles/`.
        options: what goes into it.
        output: folder for `<bundle>.zip`.
        say: is told what is being done.

    Raises:
        ReleaseError: when the package must not be made.
        WeightsError: when the checkpoint is not one, or does not fit.
    """
    files = source.committed_files(root, bundle)
    check_changelog(json.loads(files["configs/metadata.json"]))
    settings = model.settings_of(options.weights, options.settings)
    files |= _configs(files, settings, bundle == f"sa_swin_{task_of(load_checkpoint(options.weights))}")
    config = json.loads(files["configs/inference.json"])
    say("weights")
    network = model.network_of(config)
    state = model.fill(network, options.weights)
    records = records_of(options.weights)
    files |= conformal_of(options.weights)
    files["models/model.pt"] = model.as_pt(state, records, settings)
    files["models/model.safetensors"] = model.as_safetensors(state, records, settings)
    evaluation, onnx = _evaluation(bundle, options, say), _onnx(network, config, options, say)
    if onnx:
        files["models/model.onnx"] = onnx.content
    made = _Made(source.commit(root), settings, options, evaluation, onnx)
    files |= _descriptions(files, bundle, network, config, made)
    if options.url:
        files["large_files.yml"] = large_files(files, options.url)
    say("checks, zip")
    check_privacy(files, evaluation.subjects if evaluation else (), [root.resolve(), Path.home()])
    files[CHECKSUMS] = checksums(files)
    path = output / f"{bundle}.zip"
    write_zip(path, bundle, files)
    return path


@dataclass(frozen=True)
class _Made:
    """What the descriptions of a package are written from."""

    commit: str
    settings: Mapping[str, Any]
    options: Options
    evaluation: Evaluation | None
    onnx: OnnxModel | None


def _configs(files: Mapping[str, bytes], settings: Mapping[str, Any], own: bool) -> dict[str, bytes]:
    """The YAML configs as they go into the package, each with its JSON twin."""
    code = code_digest({n.removeprefix("custom/"): c for n, c in files.items() if n.startswith("custom/")})
    out = {}
    for name, content in files.items():
        if name.startswith("configs/") and name.endswith(".yaml"):
            text = content.decode()
            if "bundle_root" in yaml.safe_load(text):  # a layer has none; what it is merged over has
                text = packaged(text, settings, code, own)
            out[name] = text.encode()
            out[name.removesuffix("yaml") + "json"] = json_twin(text).encode()
    return out


def conformal_of(weights: Path) -> dict[str, bytes]:
    """The figures of intervals beside the weights, if they are of these weights alone."""
    path = weights.with_name(FILE)
    if not path.is_file() or read_figures(path)["weights_sha256"] != [weights_digest(weights)]:
        return {}
    return {f"models/{FILE}": path.read_bytes()}


def _evaluation(bundle: str, options: Options, say: Say) -> Evaluation | None:
    if options.evaluation is None:
        return None
    say("confidence intervals")
    return read_evaluation(options.evaluation, bundle, weights_digest(options.weights))


def _onnx(network: nn.Module, config: Mapping[str, Any], options: Options, say: Say) -> OnnxModel | None:
    """The network as it is used: on ROIs where the bundle has them, else on whole volumes."""
    if not options.onnx:
        return None
    say("ONNX export, comparison with PyTorch")
    size = ensure_tuple_rep(config.get("roi_size", config["spatial_size"]), 3)
    return export(network, 2 * channels_of(config), size)


def _descriptions(
    files: Mapping[str, bytes], bundle: str, network: nn.Module, config: Mapping[str, Any], made: _Made
) -> dict[str, bytes]:
    """Metadata and model card."""
    with torch.no_grad():
        channels = network(torch.zeros(1, 2 * channels_of(config), 64, 32, 32)).shape[1]
    told = json.loads(files["configs/metadata.json"])
    meta = fitted(told, config, channels, made.evaluation, made.settings.get("class_names"))
    facts = card.CardFacts(
        name=bundle,
        version=meta["version"],
        commit=made.commit,
        monai=meta["monai_version"],
        settings={**{name: config[name] for name in card.INPUT_CONTRACT if name in config}, **made.settings},
        trained_on=made.options.trained_on,
        evaluation=made.evaluation,
        onnx=made.onnx,
    )
    return {
        "configs/metadata.json": (json.dumps(meta, indent=4) + "\n").encode(),
        "docs/README.md": card.fill(files["docs/README.md"].decode(), facts).encode(),
    }


def large_files(files: Mapping[str, bytes], url: str) -> bytes:
    """`large_files.yml`: where each file of `models/` is served, for a copy of the package without them.

    Raises:
        ReleaseError: not an address on the web.
    """
    if not url.startswith(("https://", "http://")):
        raise ReleaseError(f"--url should start with https://, got {url}")
    entries = [
        {
            "path": name,
            "url": f"{url.rstrip('/')}/{name.removeprefix('models/')}",
            "hash_val": hashlib.sha256(content).hexdigest(),
            "hash_type": "sha256",
        }
        for name, content in sorted(files.items())
        if name.startswith("models/")
    ]
    return yaml.safe_dump({"large_files": entries}, sort_keys=False).encode()
