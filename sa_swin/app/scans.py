"""The scans that an app works on: chosen by the rules of BIDS and by label, and one task's share of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from custom.data.case import refuse_outside
from custom.data.folders import stem_of
from custom.support.errors import UserError
from sa_swin.cohort.bids import LeftOut, Scan, find_scans
from sa_swin.commands import OptionError


@dataclass(frozen=True)
class AppScan:
    """A scan, and where its results go.

    Args:
        images: path of each channel, relative to the dataset.
        subject: with `sub-`.
        session: with `ses-`, or empty.
    """

    images: tuple[str, ...]
    subject: str
    session: str

    @property
    def name(self) -> str:
        """What the first image's name says but for its suffix, `sub-01_ses-2_run-1`."""
        return PurePosixPath(stem_of(self.images[0])).name.rpartition("_")[0]

    def place(self, output: Path, ending: str) -> Path:
        """A result's path, such as that of `_desc-lesion_dseg.nii.gz`."""
        return output / PurePosixPath(self.images[0]).parent / f"{self.name}{ending}"

    def paths(self, dataset: Path) -> list[str]:
        """The images as absolute paths, when the dataset's is one."""
        return [str(dataset / image) for image in self.images]


def app_scans(
    dataset: Path,
    channels: Sequence[str],
    subjects: Sequence[str] = (),
    sessions: Sequence[str] = (),
    allow_outside: bool = False,
) -> tuple[list[AppScan], list[LeftOut]]:
    """The scans of a dataset, by subject and session, and what of the subjects could not become one.

    Args:
        dataset: the BIDS folder.
        channels: choices such as `T1w`, one per channel.
        subjects: labels, with or without `sub-`; none takes all.
        sessions: labels, with or without `ses-`.
        allow_outside: take files that symlinks lead to outside of the dataset.

    Raises:
        UserError: no such image, or none of a label that was asked for.
    """
    wanted, ses = {_label(s) for s in subjects}, {_label(s) for s in sessions}
    found, left_out = find_scans(dataset, channels, None, None)
    scans = [_app_scan(s) for s in found if _asked(s, wanted, ses)]
    if missing := wanted - {_label(scan.subject) for scan in scans}:
        names = ", ".join(f"sub-{label}" for label in sorted(missing))
        raise UserError(f"{dataset} has no {' and '.join(channels)} image of {names}{' in these sessions' * bool(ses)}")
    if not scans:
        raise UserError(f"{dataset} has no {' and '.join(channels)} image in the sessions {', '.join(sorted(ses))}")
    refuse_outside((path for scan in scans for path in scan.images), dataset, allow_outside)
    told = [row for row in left_out if not wanted or set(re.findall(r"sub-([A-Za-z0-9]+)", row["subject"])) & wanted]
    return scans, told


def _app_scan(scan: Scan) -> AppScan:
    return AppScan(scan.images, scan.subject, f"ses-{scan.session}" if scan.session else "")


def _asked(scan: Scan, subjects: set[str], sessions: set[str]) -> bool:
    return (not subjects or _label(scan.subject) in subjects) and (not sessions or scan.session in sessions)


def _label(text: str) -> str:
    return re.sub("^(sub|ses)-", "", text)


def share(scans: Sequence[AppScan], shard: str) -> list[AppScan]:
    """The scans of one task of several: every N-th.

    Args:
        scans: all of them, in an order that is the same in every task.
        shard: `I/N`, such as `1/16` for the first of sixteen.

    Raises:
        OptionError: not of that form.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise OptionError(f"--shard takes I/N with I from 1 to N, such as 3/16; got {shard!r}")
    return list(scans[int(found[1]) - 1 :: int(found[2])])
