"""The tutorial's pictures, from what `make demo` leaves: `python examples/pictures.py --demo demo`.

They are those of the demo's own contact sheet and reports: the aligned heads with the least trusted planes, the curves
of a training, and held-out cases with their mirror image, prediction and truth.
"""

from collections.abc import Iterator
from pathlib import Path

import fire
from matplotlib.figure import Figure
from PIL import Image

from custom.support.errors import UserError
from sa_swin.report.cases import chosen, pictured
from sa_swin.report.figures import curves, mosaic, read_scalars
from sa_swin.report.page import read_run

ROWS = 2
"""Of the contact sheet, of six."""


def figures(demo: Path) -> Iterator[tuple[str, Figure]]:
    """The demo's curves of the segmentation's training, and its worst and best held-out case.

    Raises:
        UserError: when the demo has left no such run.
    """
    run = read_run(demo / "segment" / "evaluate")
    _, picked = chosen(run)
    ends = [picked[0], picked[-1]]
    cases = [case for row, name in ends if (case := pictured(run, row, name)) is not None]
    if not cases:
        raise UserError(f"the images of {demo / 'segment' / 'evaluate' / 'cases.csv'} are not there any more")
    yield "demo_cases", mosaic(cases)
    yield "demo_training", curves(read_scalars(demo / "segment" / "train"))


def heads(demo: Path) -> Image.Image:
    """The first rows of the first contact sheet.

    Raises:
        UserError: when there is none.
    """
    path = demo / "prepared" / "contact_sheet_01.png"
    if not path.is_file():
        raise UserError(f"{path} is not there; run `make demo` first")
    sheet = Image.open(path).convert("L")
    return sheet.crop((0, 0, sheet.width, sheet.height * ROWS // 6))


def main(demo: str = "demo", output: str = "docs/figures") -> None:
    """Write the pictures.

    Args:
        demo: folder of `make demo`.
        output: folder of the PNG files.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    heads(Path(demo)).save(folder / "demo_heads.png", optimize=True)
    for name, figure in figures(Path(demo)):
        figure.savefig(folder / f"{name}.png", dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    fire.Fire(main)
