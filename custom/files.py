"""Files that are whole or not there: each is written under a temporary name first, and then renamed."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, content: bytes | str | Callable[[Path], object]) -> None:
    """Write a file so that one of this name is never half of one; nothing is left behind when writing fails.

    Args:
        path: of the file; its folder is made where it is missing.
        content: bytes, text, or what writes a file to the path that it is given, which has the same ending.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial_{os.getpid()}_{path.name}")
    try:
        if callable(content):
            content(partial)
        else:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
