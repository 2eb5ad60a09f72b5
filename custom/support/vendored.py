"""Which code this is: packages carry a copy of `custom`, and two in one process share whichever came first.

A released config names the digest of the code that it was cut with; `require` refuses any other.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from custom.support.errors import UserError


class CodeError(UserError):
    """The `custom` that Python found is not the one a package was cut with."""


def code_digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 over the Python files among `files` (path relative to `custom/` to content), in order of their paths."""
    digest = hashlib.sha256()
    for name in sorted(files):
        if name.endswith(".py"):
            digest.update(f"{name}\0{len(files[name])}\0".encode())
            digest.update(files[name])
    return digest.hexdigest()


def installed_digest() -> str:
    """`code_digest` of the `custom` that this process runs."""
    folder = Path(__file__).parents[1]
    return code_digest({path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.py")})


def require(digest: str) -> None:
    """Check that this process runs the code with this digest.

    Raises:
        CodeError: it runs another version of `custom`: of another package, a checkout, or an installed one.
    """
    if (found := installed_digest()) != digest:
        raise CodeError(
            f"this package was cut with `custom` {digest[:12]}, but {Path(__file__).parents[1]} is {found[:12]}: "
            "packages of different versions cannot share a process; use one process each, and run outside of other "
            "copies of `custom`"
        )
