"""Packages as files: a byte-stable zip with checksums, and reading one back without trusting it."""

import hashlib
import io
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from custom.files import write_whole
from custom.release.errors import ReleaseError

CHECKSUMS = "SHA256SUMS"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip's earliest time
_WATCHED = ("configs", "custom", "docs", "models")
_LARGEST = 16 * 2**30  # bytes that a package may claim, unpacked


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


def read_package(path: Path) -> dict[str, bytes]:
    """Files of a package, from its zip or its folder: path below `<name>/` to content; nothing is run or unpacked.

    Of a folder, what Python and a run leave there (`__pycache__`, `eval`) is passed over.

    Raises:
        ReleaseError: no package there, or a zip whose members are not plain files below one folder.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not zipfile.is_zipfile(path):
        raise ReleaseError(f"no package at {path}: expected a zip or its unpacked folder")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            return {name: archive.read(member) for name, member in members.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ReleaseError(f"{path} is damaged: {error}") from error


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Files of a zip below its one folder, checked before anything is read."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    top = PurePosixPath(entries[0].filename).parts[0] if entries else path.stem
    if (claimed := sum(entry.file_size for entry in entries)) > _LARGEST:
        raise ReleaseError(f"{path} claims {claimed / 2**30:.0f} GB unpacked; no package is that large")
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ReleaseError(f"{path} holds a symlink: {entry.filename}")
        if len(parts) < 2 or parts[0] != top or top == "/" or ".." in parts or re.search(r"[\\:\0]", entry.filename):
            raise ReleaseError(f"{path} holds {entry.filename}, which is not below one folder")
        if (name := "/".join(parts[1:])) in members:
            raise ReleaseError(f"{path} holds {name} twice")
        members[name] = entry
    return members


def _read_folder(path: Path) -> dict[str, bytes]:
    files = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_symlink():
            raise ReleaseError(f"{path} holds a symlink: {name}")
        if file.is_file() and "__pycache__" not in file.parts and ("/" not in name or name.split("/")[0] in _WATCHED):
            files[name] = file.read_bytes()
    return files


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
