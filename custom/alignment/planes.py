"""Midsagittal planes that a person set, one per image, in a small CSV table.

Columns `image, yaw_deg, roll_deg, offset_mm`; others are passed over, so that rows of the `planes.csv` that
`sa-swin prepare` writes can be copied and corrected. In world RAS the plane's normal is `(1, tan yaw, tan roll)` made a
unit: with yaw its right end points forwards, with roll upwards. It lies `offset_mm` from the middle of the array along
the normal, towards the patient's right. `image` is a path as in the datalist, or its end.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from custom.support.errors import UserError

COLUMNS = ("yaw_deg", "roll_deg", "offset_mm")
STEEPEST = 60.0
"""Degrees beyond which a plane is no midsagittal one, but a header or a number is wrong."""


@dataclass(frozen=True)
class HandPlane:
    """A plane that a person set: degrees, and mm from the middle of the array."""

    image: str
    yaw_deg: float
    roll_deg: float
    offset_mm: float

    @property
    def figures(self) -> tuple[float, float, float]:
        return self.yaw_deg, self.roll_deg, self.offset_mm


def read_planes(path: str | Path | None) -> list[HandPlane]:
    """The planes of a table; none without a table.

    Raises:
        UserError: no such file, a missing column, an image twice, or what is no number in range, with the line.
    """
    if not path:
        return []
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in ("image", *COLUMNS) if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path} lacks the columns {', '.join(missing)}; expected image, {', '.join(COLUMNS)}")
            rows = [(reader.line_num, row) for row in reader if any((value or "").strip() for value in row.values())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: the table of planes cannot be read: {error}") from error
    planes = [_plane(path, number, row) for number, row in rows]
    names = [plane.image for plane in planes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: {twice} has two planes; keep one")
    return planes


def _plane(path: str | Path, number: int, row: dict[str, str]) -> HandPlane:
    image = (row["image"] or "").strip().replace("\\", "/")
    try:
        yaw, roll, offset = (float(row[name]) for name in COLUMNS)
    except (TypeError, ValueError):
        raise UserError(f"{path}, line {number}: {', '.join(COLUMNS)} should be numbers, got {row}") from None
    if not (image and abs(yaw) <= STEEPEST and abs(roll) <= STEEPEST and math.isfinite(offset)):
        raise UserError(
            f"{path}, line {number}: expected an image, yaw and roll within {STEEPEST:.0f} degrees of 0 and an offset "
            f"in mm, got {row}"
        )
    return HandPlane(image, yaw, roll, offset)


def plane_for(planes: Sequence[HandPlane], image: str) -> HandPlane | None:
    """The plane that was set for an image: the row whose path is the end of the image's.

    Raises:
        UserError: when two rows are.
    """
    parts = PurePath(image).parts
    found = [plane for plane in planes if parts[-len(own := PurePath(plane.image).parts) :] == own]
    if len(found) > 1:
        raise UserError(f"{image} has two planes in the table, of {found[0].image} and of {found[1].image}; keep one")
    return found[0] if found else None
