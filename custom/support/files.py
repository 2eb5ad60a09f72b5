"""Files that are whole or not there: each is written under a temporary name first, and then renamed."""

import csv
import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from custom.support.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PAIR = {".hdr": ".img", ".img": ".hdr"}
_KEPT_OF_NAME = 40  # characters, 160 bytes at most: a temporary name must not be too long where the name is not


class WriteError(UserError, OSError):
    """A file that cannot be written; the message says where, why, and how much space there is."""


def write_whole(path: Path, content: bytes | str | Callable[[Path], object]) -> None:
    """Write a file so that one of this name is never half of one; nothing is left behind when writing fails.

    Args:
        path: of the file; its folder is made where it is missing.
        content: bytes, text, or what writes a file to the path that it is given, which has the same ending.

    Raises:
        WriteError: no room, no right, or no file system any more; a file of that name stays as it was.
    """
    partial = path.with_name(f".partial_{os.getpid()}_{os.urandom(4).hex()}_{path.name[-_KEPT_OF_NAME:]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(partial)
        else:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
        _to_disk(partial)
        os.replace(partial, path)
    except Exception as error:
        cause = _of_the_system(error)
        if cause is None or isinstance(error, WriteError):
            raise
        raise unwritable(path, cause) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def append(path: Path, text: str) -> None:
    """Add text to a file that is there; where that fails, the file stays as it was.

    Raises:
        WriteError: as `write_whole`; also where the file has gone.
    """
    try:
        with path.open("r+b", buffering=0) as file:  # "a" would make anew what has vanished
            end = file.seek(0, os.SEEK_END)
            rest = memoryview(text.encode())
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise unwritable(path, error) from error


def write_rows(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV table with a header: of each row the named columns; what a row lacks stays empty.

    Raises:
        WriteError: as `write_whole`.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    # a file's name on Linux need not be UTF-8; one that is not must not lose the whole table
    write_whole(path, text.getvalue().encode(errors="backslashreplace"))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV table with a header.

    Raises:
        OSError: it cannot be read.
    """
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def json_text(content: Any) -> str:
    """Indented JSON, as this project's files hold it."""
    return json.dumps(content, indent=2) + "\n"


def stamp_of(path: str | Path) -> list[int]:
    """Size in bytes and time of last change (ns) of a file; empty where it cannot be asked.

    Of a pair `.hdr`, `.img`, whose voxels and affine lie apart, those of the other file follow, if it is there.
    """
    own = Path(path)
    try:
        stats = [own.stat()]
    except OSError:
        return []
    if other := _PAIR.get(own.suffix):
        with suppress(OSError):
            stats.append(own.with_suffix(other).stat())
    return [number for stat in stats for number in (stat.st_size, stat.st_mtime_ns)]


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def below(path: str | Path, root: str | Path) -> Path:
    """Where a file has its counterpart below another folder: its path relative to `root`, or its whole path."""
    full, base = Path(os.path.abspath(Path(root) / path)), os.path.abspath(root)
    return full.relative_to(base) if full.is_relative_to(base) else Path(*full.parts[1:])


def unwritable(path: Path, error: OSError) -> WriteError:
    """What hinders writing a file, in a sentence."""
    advice = "make room there" if error.errno in _FULL else "see that its file system is there and may be written to"
    why = error.strerror or str(error)
    found = WriteError(f"{path} cannot be written: {why}{_free(path)}; {advice}, then run the same command again")
    found.errno = error.errno
    return found


def _of_the_system(error: BaseException | None) -> OSError | None:
    """The system's error in a chain: `torch.save` hides it behind a RuntimeError of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _to_disk(path: Path) -> None:
    """Have a file on the disk, not in a buffer: some network file systems say only then that they are full."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _free(path: Path) -> str:
    there = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    try:
        return f" ({shutil.disk_usage(there).free / 1e6:,.1f} MB free on its file system)" if there else ""
    except OSError:
        return ""
