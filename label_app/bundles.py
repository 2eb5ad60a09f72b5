"""What the MONAI Label server serves: a working copy of each bundle with its weights, which training may change.

The bundles come from this repository with trained weights, or from packages of `sa-swin release`. A working copy is
kept from one start of the server to the next, so that what was trained stays; the weights it came from are left alone.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from custom.support.errors import UserError
from custom.support.files import write_whole
from custom.weights.provenance import records_of
from custom.weights.settings import task_of
from custom.weights.transfer import load_checkpoint, weights_digest
from sa_swin.release.archive import read_package
from sa_swin.release.configs import of_the_weights, with_settings
from sa_swin.release.metadata import fitted
from sa_swin.release.model import as_pt, fill, network_of, settings_of
from sa_swin.release.verification import verify

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = ("sa_swin_segment", "sa_swin_classify")
MODEL = "models/model.pt"
SOURCE = "source.json"  # digest of the weights that a working copy came from

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Served:
    """What is ready to be served.

    Args:
        folder: holds a folder per bundle.
        code: holds the `custom` that the bundles run with.
        trained: the bundles whose weights have been trained further here.
    """

    folder: Path
    code: Path
    trained: tuple[str, ...]


def prepare(weights: Path, studies: Path, models: Path) -> Served:
    """Make the working copies of the bundles, or go on with those that are there.

    Args:
        weights: folder of packages `<bundle>.zip` or `<bundle>/`, or of trained weights `<task>/models/model.pt` as
            `make demo` leaves them; it holds the segmenter, the classifier, or both.
        studies: images that will be served; other studies get copies of their own.
        models: folder for the working copies.

    Raises:
        UserError: no weights there, or such as do not fit their bundle.
    """
    sources = {bundle: files for bundle in BUNDLES if (files := _source(weights, bundle))}
    if not sources:
        raise UserError(
            f"no weights in {weights}: expected packages (sa_swin_segment.zip) or trained weights "
            "(segment/models/model.pt, as `make demo` leaves them); give their folder with WEIGHTS"
        )
    folder = models / _key(sources, studies)
    trained = tuple(bundle for bundle, files in sources.items() if _write(files, folder / bundle))
    packaged = folder / next(iter(sources))
    return Served(folder, packaged if (packaged / "custom").is_dir() else ROOT, trained)


def _source(weights: Path, bundle: str) -> Files | None:
    """Files of a bundle: of its package, else of this repository with trained weights; None where there is neither."""
    for package in (weights / bundle, weights / f"{bundle}.zip"):
        if package.exists():
            return from_package(package)
    trained = weights / bundle.removeprefix("sa_swin_") / MODEL
    return from_repository(bundle, trained) if trained.is_file() else None


def from_package(path: Path) -> dict[str, bytes]:
    """What the server needs of a package, zip or folder.

    Raises:
        UserError: no package, or not as it was built.
    """
    files = read_package(path)
    if problems := verify(files):
        raise UserError(f"{path} is not as it was built: " + "; ".join(problems))
    return {
        name: content for name, content in files.items() if name.startswith(("configs/", "custom/")) or name == MODEL
    }


def from_repository(bundle: str, weights: Path) -> dict[str, bytes]:
    """A bundle of this repository with the settings of a training and its weights.

    Raises:
        WeightsError: the weights do not fit the bundle.
    """
    settings = settings_of(weights)
    files = {f"configs/{path.name}": path.read_bytes() for path in (ROOT / "bundles" / bundle / "configs").iterdir()}
    own = bundle == f"sa_swin_{task_of(load_checkpoint(weights))}"
    files |= {name: _set(text.decode(), settings, own) for name, text in files.items() if name.endswith(".yaml")}
    config = yaml.safe_load(files["configs/inference.yaml"])
    state = fill(network_of(config), weights)
    told = json.loads(files["configs/metadata.json"])
    meta = fitted(told, config, config["num_classes"], None, settings.get("class_names"))
    content = as_pt(state, records_of(weights), settings)
    return files | {"configs/metadata.json": json.dumps(meta).encode(), MODEL: content}


def _set(text: str, settings: Mapping[str, Any], own: bool) -> bytes:
    """A config with the knobs of a training; a layer over another config has none."""
    whole = "bundle_root" in yaml.safe_load(text)
    return (with_settings(text, of_the_weights(text, settings, own)) if whole else text).encode()


def _key(sources: Mapping[str, Files], studies: Path) -> str:
    """A name for the working copies of these weights for these studies."""
    text = "\0".join([str(studies), *(hashlib.sha256(files[MODEL]).hexdigest() for files in sources.values())])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _write(files: Files, target: Path) -> bool:
    """Write a working copy, the weights only where there are none yet; whether there were others, trained here."""
    for name, content in files.items():
        if name != MODEL:
            write_whole(target / name, content)
    model, source = target / MODEL, target / SOURCE
    if not model.is_file():
        write_whole(model, files[MODEL])
        write_whole(source, json.dumps({"weights": weights_digest(model)}))
    return weights_digest(model) != json.loads(source.read_text())["weights"]
