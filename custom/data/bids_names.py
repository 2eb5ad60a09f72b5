"""BIDS as far as file names and folders go: what a name says, where its file belongs, what `.bidsignore` leaves out.

After the specification (1.9, "Filesystem structure"): `<key>-<value>_..._<suffix><extension>` in
`sub-<label>/[ses-<label>/]<datatype>/`.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

EXTENSIONS = (".nii.gz", ".nii")
DATATYPES = ("anat", "ct", "dwi", "fmap", "func", "perf", "pet")
OF_ALL_CT = r"(sub-\*/)?(ses-\*/)?(anat/)?[/*]*(_?ct\.\S*|_?ct\*|ct/?\**)"  # lines such as *_CT.nii.gz and ct/
NOT_RAW = ("derivatives", "sourcedata", "code")  # folders of a dataset that hold no raw images


@dataclass(frozen=True)
class BidsFile:
    """A file of a BIDS folder: its path relative to that folder, and what its name says."""

    path: str
    suffix: str
    entities: Mapping[str, str] = field(hash=False)

    @property
    def session(self) -> tuple[str, str | None]:
        """Subject and session, without `sub-` and `ses-`."""
        return self.entities["sub"], self.entities.get("ses")


def parse_name(path: str) -> BidsFile | None:
    """What a NIfTI file's name says, or None for a name that is not of BIDS."""
    name = os.path.basename(path)
    for extension in EXTENSIONS:
        if name.endswith(extension):
            *pairs, suffix = name.removesuffix(extension).split("_")
            entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
            if entities.get("run", "").isdigit():
                entities["run"] = str(int(entities["run"]))  # run-1 and run-01 are the same
            whole = len(entities) == len(pairs) and "sub" in entities and "-" not in suffix
            return BidsFile(path, suffix, entities) if whole else None
    return None


def misplaced(file: BidsFile) -> str | None:
    """Why a file is not where BIDS has the images of its subject; None where it is."""
    folders = PurePosixPath(file.path).parts[:-1]
    named = [f"{key}-{file.entities[key]}" for key in ("sub", "ses") if key in file.entities]
    if not folders or not folders[0].startswith("sub-"):
        return "not in a folder sub-<label> of the dataset"
    if list(folders[: len(named)]) != named or (len(folders) > 1 and folders[1].startswith("ses-") and len(named) < 2):
        return f"named {'_'.join(named)}, but in {'/'.join(folders)}"
    if len(folders) != len(named) + 1 or folders[-1] not in DATATYPES:
        return "not in anat, or another folder of BIDS, right below its subject or session"
    return None


def ignored(root: Path) -> Callable[[str], bool]:
    """Whether a path, relative to a dataset, is one that its `.bidsignore` names, by the rules of `.gitignore`.

    Lines that name all CT are passed over: they are there because BIDS has no CT, not because the scans are no good.
    """
    file = root / ".bidsignore"
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines() if file.is_file() else []
    texts = (line.strip() for line in lines if line.strip() and not line.startswith("#"))
    rules = [_rule(text) for text in texts if not re.fullmatch(OF_ALL_CT, text, re.IGNORECASE)]

    def is_ignored(path: str) -> bool:
        parts = PurePosixPath(path).parts
        for depth in range(1, len(parts) + 1):
            place, out = "/".join(parts[:depth]), False
            for pattern, folders_only, keeps in rules:
                if pattern.fullmatch(place) and not (folders_only and depth == len(parts)):
                    out = not keeps
            if out:
                return True
        return False

    return is_ignored


def _rule(line: str) -> tuple[re.Pattern[str], bool, bool]:
    """A line as pattern of a relative path, whether it is of folders alone, and whether it keeps what it matches."""
    keeps, text = line.startswith("!"), line.removeprefix("!")
    anchored = "/" in text.rstrip("/")
    pattern = re.escape(text.strip("/"))
    for glob, expression in ((r"\*\*/", "(?:.*/)?"), (r"/\*\*", "/.*"), (r"\*", "[^/]*"), (r"\?", "[^/]")):
        pattern = pattern.replace(glob, expression)
    return re.compile(pattern if anchored else f"(?:.*/)?{pattern}"), text.endswith("/"), keeps
