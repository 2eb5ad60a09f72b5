"""Packages as files: a byte-stable zip with checksums, and reading one back without trusting it."""

import hashlib
import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from custom.support.files import write_whole
from sa_swin.release.errors import ReleaseError

CHECKSUMS = "SHA256SUMS"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip's earliest time
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, struct.error)
_LEFT_BY_A_RUN = ("eval", "__pycache__")
_LARGEST = 16 * 2**30  # bytes that a package may claim, unpacked
_DENSEST = 100  # times its size that a package of more than _SMALL bytes may claim: weights hardly shrink
_SMALL = 2**28
_MOST_FILES = 10_000
_LARGEST_TEXT = 2**24  # bytes of a config or of code


def checksums(files: Mapping[str, bytes]) -> bytes:
    """Content of SHA256SUMS, as `sha256sum --check` reads it."""
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()


def write_zip(path: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Write `<name>/...`, sorted, with fixed times and permissions."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(files):
            entry = zipfile.ZipInfo(f"{name}/{file}", _EPOCH)
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, whatever the system
            archive.writestr(entry, files[file])
    write_whole(path, stream.getvalue())


def read_package(path: Path, wanted: Callable[[str], bool] | None = None) -> dict[str, bytes]:
    """Files of a package, from its zip or its folder: path below `<name>/` to content; nothing is run or unpacked.

    Of a folder, what Python and a run leave there (`__pycache__`, `eval`) is passed over.

    Args:
        path: zip or folder.
        wanted: which files to read, texts of some MB; the others come without content. None reads all.

    Raises:
        ReleaseError: no package there, or a zip whose members are not plain files below one folder.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, wanted)
    if not zipfile.is_zipfile(path):
        raise ReleaseError(f"no package at {path}: expected a zip or its unpacked folder")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            sizes = {name: member.file_size for name, member in members.items()}
            _check_texts(path, sizes, wanted)
            return {n: archive.read(member) if wanted is None or wanted(n) else b"" for n, member in members.items()}
    except _DAMAGE as error:
        raise ReleaseError(f"{path} is damaged: {error}") from error


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Files of a zip below its one folder, checked before anything is read."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    top = entries[0].filename.split("/")[0] if entries else path.stem
    claimed = sum(entry.file_size for entry in entries)
    if claimed > _LARGEST or (claimed > _SMALL and claimed > _DENSEST * path.stat().st_size):
        raise ReleaseError(f"{path} claims {claimed / 2**30:.1f} GB unpacked; no package of its size does")
    if len(entries) > _MOST_FILES:
        raise ReleaseError(f"{path} holds {len(entries)} files; no package does")
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        if not entry.filename.isprintable():
            raise ReleaseError(f"{path} holds a file whose name is not printable: {entry.filename!a}")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            kind = "a symlink" if stat.S_ISLNK(entry.external_attr >> 16) else "what is no plain file"
            raise ReleaseError(f"{path} holds {kind}: {entry.filename}")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ReleaseError(f"{path} holds {entry.filename}, compressed as no package is")
        if (
            len(parts) < 2
            or parts[0] != top
            or top in ("", "/")
            or ".." in parts
            or re.search(r"[\\:]", entry.filename)
        ):
            raise ReleaseError(f"{path} holds {entry.filename}, which is not below one folder")
        if (name := "/".join(parts[1:])) in members:
            raise ReleaseError(f"{path} holds {name} twice")
        members[name] = entry
    return members


def _read_folder(path: Path, wanted: Callable[[str], bool] | None) -> dict[str, bytes]:
    found: dict[str, Path] = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if name.split("/")[0] in _LEFT_BY_A_RUN or "__pycache__" in name.split("/"):
            continue
        if file.is_symlink() or not (file.is_file() or file.is_dir()):
            kind = "a symlink" if file.is_symlink() else "what is no plain file"
            raise ReleaseError(f"{path} holds {kind}: {name}")
        if file.is_file():
            found[name] = file
    _check_texts(path, {name: file.stat().st_size for name, file in found.items()}, wanted)
    return {name: file.read_bytes() if wanted is None or wanted(name) else b"" for name, file in found.items()}


def _check_texts(path: Path, sizes: Mapping[str, int], wanted: Callable[[str], bool] | None) -> None:
    for name, size in sizes.items():
        if wanted and wanted(name) and size > _LARGEST_TEXT:
            raise ReleaseError(f"{path} holds {name} of {size / 2**20:.0f} MB; no config or code is that large")


def check(files: Mapping[str, bytes]) -> list[str]:
    """What is wrong with the files of a package, by its checksums; nothing when all is as it was built."""
    if CHECKSUMS not in files:
        return [f"no {CHECKSUMS}"]
    try:
        lines = files[CHECKSUMS].decode().splitlines()
        listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except ValueError:
        return [f"{CHECKSUMS} is not a list of checksums"]
    problems = [f"{name} is missing" for name in sorted(listed.keys() - files.keys())]
    problems += [f"{name} is not listed" for name in sorted(files.keys() - listed.keys() - {CHECKSUMS})]
    for name in sorted(listed.keys() & files.keys()):
        if hashlib.sha256(files[name]).hexdigest() != listed[name]:
            problems.append(f"{name} was changed")
    return problems
