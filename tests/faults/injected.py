"""Faults that need no rights of an administrator: files that may not grow, a disk that is full from a write on."""

import contextlib
import errno
import os
import resource
import shutil

from hypothesis import HealthCheck, settings


@contextlib.contextmanager
def no_room(size=8):
    """Let no file grow beyond so many bytes: `File too large`, at the very write. Python ignores the signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def full_from(number, monkeypatch, vanishing=None):
    """Fail every write of a file, as it reaches the disk, from the numbered one on; yields the writes counted.

    With `vanishing`, a folder, that is removed at this write instead.
    """
    counted, real = [], os.fsync

    def fsync(handle):
        counted.append(handle)
        if len(counted) >= number and vanishing is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if len(counted) == number:
            shutil.rmtree(vanishing)
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield counted


def tree(folder):
    """Every file below a folder, hidden ones too, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fuzzing(examples, seconds, fixed=False):
    """Settings of a fuzzer: so many examples, each within so many seconds; the same ones every time if `fixed`."""
    return settings(
        max_examples=examples,
        derandomize=fixed,
        deadline=seconds * 1000,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
