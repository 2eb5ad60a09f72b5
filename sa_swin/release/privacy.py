"""What must not leave the house: paths of a machine, and ids of subjects."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from sa_swin.release.errors import ReleaseError

_PATH = re.compile(
    rb"(?<![\w.~/:@-])/(?:home|Users|root|mnt|media|data|scratch|work|private|var|tmp|srv|opt|gpfs|lustre|nfs)/[\w.-]+"
    rb"|\b[A-Za-z]:\\\\?(?:Users|Documents)[\w\\]*|file:///\w+|(?<![\w~])~/\w+"
)
_SUBJECT = re.compile(
    rb"\bsub-(?!0{0,2}[1-9]\b)\w*\d\w*"  # BIDS, but for examples such as sub-1, sub-01, sub-001
    rb"|\b\d{3}_S_\d{4}\b|\bOAS\d{5}\b|\bTCGA-\w\w-\w{4}\b|\bIXI\d{3}\b|\bBraTS\w*_\d{5}\b|\bA0000\d{4}\b"
)
_EXAMPLE = re.compile(r"(sub-)?0{0,2}[1-9]")
_TEXT = (".py", ".yaml", ".yml", ".json", ".md", ".txt", ".conf", ".toml", ".csv", ".tsv", "LICENSE")


def check_privacy(files: Mapping[str, bytes], subjects: Collection[str] = (), homes: Collection[Path] = ()) -> None:
    """Refuse files with absolute or personal paths, or with ids of subjects.

    Args:
        files: path in the package to content.
        subjects: ids that must not occur in any text, of the cases evaluated.
        homes: folders of this machine whose paths must not occur in any file, binary ones included.

    Raises:
        ReleaseError: names the file and what it holds.
    """
    private = [str(home).encode() for home in homes if len(home.parts) > 2]  # /root is a path in texts
    ids = sorted(subject for subject in subjects if not _EXAMPLE.fullmatch(subject) and len(subject) > 2)
    listed = b"|".join(re.escape(subject.encode()) for subject in ids)
    known = re.compile(rb"(?<![\w-])(?:" + listed + rb")(?![\w-])") if ids else None
    for name, content in sorted(files.items()):
        if found := [path for path in private if path in content]:
            raise ReleaseError(f"{name} holds the path {found[0].decode()}; a package must not")
        if not name.endswith(_TEXT):
            continue
        if found := _PATH.search(content):
            raise ReleaseError(f"{name} holds the path {found[0].decode()}; a package must not")
        if found := _SUBJECT.search(content) or (known.search(content) if known else None):
            raise ReleaseError(f"{name} holds the subject id {found[0].decode()}; a package must not")
