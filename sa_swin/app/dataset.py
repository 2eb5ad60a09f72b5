"""The derivatives dataset that an app writes: what it is, and what its files say of themselves."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from custom.support.errors import UserError
from custom.support.files import json_text, write_whole
from custom.support.run_record import versions

BIDS_VERSION = "1.10.0"
IGNORED = ("*.html", "group.tsv", "*_stat.*", "*_desc-summary.json")
"""What BIDS has no names for."""
README = """# Results of sa-swin

Research only. Not for clinical use.

A page for each scan (`sub-*.html`), its maps and masks on the voxel grid of its image (`sub-*/`), each with a JSON file
that says what it is, and its figures (`*_desc-summary.json`); after `sa-swin app ... group` one table (`group.tsv`) and
page (`group.html`) of all.
"""
WORK = ".work"
"""Folder of what is not finished yet."""


def generator() -> str:
    """Version of the code."""
    return versions().get("sa-swin", "unknown")


def start_dataset(output: Path, dataset: Path) -> None:
    """Make the output folder a derivatives dataset; a README.md and a .bidsignore that are there stay as they are.

    Raises:
        UserError: it is another dataset.
    """
    path = output / "dataset_description.json"
    if path.is_file() and not _is_ours(path):
        raise UserError(f"{output} holds a dataset that sa-swin did not make; give another OUTPUT_DIR")
    content = {
        "Name": "sa-swin: asymmetry and lesions",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "sa-swin", "Version": generator(), "Description": "Research only, no clinical use"}],
        "DatasetLinks": {"raw": Path(os.path.relpath(dataset, output)).as_posix()},
    }
    write_whole(path, json_text(content))
    for name, text in (("README.md", README), (".bidsignore", "\n".join(IGNORED) + "\n")):
        if not (output / name).exists():
            write_whole(output / name, text)


def _is_ours(path: Path) -> bool:
    try:
        made = json.loads(path.read_text()).get("GeneratedBy") or [{}]
        return made[0].get("Name") == "sa-swin"
    except (ValueError, AttributeError, LookupError, TypeError):
        return False


def sidecar(images: Sequence[str], description: str, **facts: Any) -> str:
    """Content of a map's JSON file.

    Args:
        images: it was made from, relative to the raw dataset.
        description: in a sentence.
        facts: under the names of BIDS, where it has one.
    """
    common = {
        "Description": f"{description} Research only, no clinical use.",
        "SpatialReference": "orig",
        "Sources": [f"bids:raw:{image}" for image in images],
    }
    return json_text(common | facts)
