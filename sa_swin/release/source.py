"""The committed files of a bundle and of `custom`, which alone go into a package."""

import io
import subprocess
import tarfile
from pathlib import Path

from sa_swin.release.errors import ReleaseError


def committed_files(root: Path, bundle: str) -> dict[str, bytes]:
    """Files of a bundle and of `custom/` as they stand in the last commit: path in the package to content.

    Raises:
        ReleaseError: not a git checkout, no such bundle, files that are changed or not committed, or symlinks.
    """
    if not (root / "bundles" / bundle / "configs").is_dir():
        known = sorted(path.name for path in (root / "bundles").glob("*") if (path / "configs").is_dir())
        raise ReleaseError(f"no bundle {bundle} in {root / 'bundles'}; there are {', '.join(known) or 'none'}")
    parts = ["custom", f"bundles/{bundle}"]
    if (
        changed := _git(root, "--no-optional-locks", "status", "--porcelain", "--untracked-files=all", "--", *parts)
        .decode()
        .splitlines()
    ):
        raise ReleaseError(
            "a package is cut from a commit, but these are untracked or changed: "
            + ", ".join(line[3:] for line in changed[:8])
            + ("" if len(changed) <= 8 else f" and {len(changed) - 8} more")
        )
    files = {}
    with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", "--format=tar", "HEAD", *parts))) as archive:
        for member in archive:
            if member.isdir():
                continue
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                raise ReleaseError(f"{member.name} is a symlink; a package holds plain files only, put a copy there")
            files[member.name.removeprefix(f"bundles/{bundle}/")] = content.read()
    return files


def commit(root: Path) -> str:
    """The commit that is checked out."""
    return _git(root, "rev-parse", "HEAD").decode().strip()


def _git(root: Path, *arguments: str) -> bytes:
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", b"").decode(errors="replace").strip() or str(error)
        raise ReleaseError(f"{root} gives no commit to cut a package from: {reason}") from error
