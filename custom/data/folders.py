"""The images below a folder, and why its other volume files are none: results, masks, copies, what BIDS keeps apart."""

import os
import re
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath

from custom.data.bids_names import EXTENSIONS, NOT_RAW, ignored, misplaced, parse_name
from custom.data.case import sequence_of

TRACES = ("finished.jsonl", "planes.csv", "run_*.json")
"""Files that an inference, `prepare` or any run of a bundle leaves in the folder of its results."""
RESULTS = ("pred", "probability", "asymmetry", "disagreement")
MASK_WORDS = (
    "mask", "masks", "brainmask", "defacemask", "seg", "dseg", "probseg", "aseg", "segmentation", "label", "labels",
    "labelmap", "lesion", "lesions", "roi", "annotation", "truth", "groundtruth", "gt",
)  # fmt: skip
EVERY = "*"
EXPECTED = ("hidden", "in derivatives, sourcedata or code")  # reasons that nobody needs to be told


def image_files(
    root: Path, images: str = EVERY, output_dir: str | Path | None = None, sequence: str | None = None
) -> tuple[list[str], dict[str, str]]:
    """The images below a folder, relative to it, and the reason for each other volume file (`.nii`, `.nii.gz`).

    A folder with `dataset_description.json`, or with a file named and placed by BIDS, is chosen from by the rules of
    BIDS. From any other folder all is taken but what is hidden, in `derivatives`, `sourcedata` or `code`, or, by its
    place or name, a result or a mask.

    Args:
        root: the folder.
        images: pattern of the names to take, such as `*_FLAIR.nii.gz`; given one, names like a mask's are asked for.
        output_dir: of the run; what lies there is no image, unless it is the folder itself.
        sequence: without a pattern, what names that are of BIDS must say their image is, such as `T1w`.
    """
    paths = sorted(path for path in files_below(root) if path.endswith(EXTENSIONS))
    names = {path: parse_name(path) for path in paths}
    placed = (path for path, name in names.items() if name and not misplaced(name) and not named_like_a_mask(path))
    bids = (root / "dataset_description.json").is_file() or next(placed, None) is not None
    is_ignored, traces = ignored(root), _results_below(root, output_dir)
    there = set(paths)
    taken: list[str] = []
    left_out: dict[str, str] = {}
    for path in paths:
        reason = _not_of_the_study(path, there) or traces(path)
        if reason is None and is_ignored(path):
            reason = "in .bidsignore"
        if reason is None and bids:
            reason = "not named as BIDS has it" if names[path] is None else misplaced(names[path])
        if reason is None and not fnmatch(PurePosixPath(path).name, images):
            reason = f"not like {images}"
        if reason is None and images == EVERY and named_like_a_mask(path):
            reason = "named like a mask"
        own = sequence_of(path) if bids and images == EVERY and sequence else None
        if reason is None and own and own.lower() != sequence.lower():
            reason = f"not {sequence}, as the weights or the norm (--images '*_{names[path].suffix}.nii*' takes them)"
        if reason is None:
            taken.append(path)
        else:
            left_out[path] = reason
    return taken, left_out


def files_below(root: Path, enter: Callable[[str], bool] = lambda name: True) -> Iterator[str]:
    """Paths, relative to a folder, of all files below it, also behind links to folders, in no order.

    A folder that several ways lead to is gone into once: by its own name, unless only by way of a folder that is set
    aside (hidden, or of `NOT_RAW`), else by the first link. None leads to a folder that the root itself is in.

    Args:
        root: the folder.
        enter: whether to go into a folder of this name.
    """
    first = os.path.realpath(root)
    seen = set(map(str, Path(first).parents))
    waiting: tuple[deque[tuple[str, str]], ...] = (deque([("", first)]), deque(), deque())
    while place := next((queue.popleft() for queue in waiting if queue), None):
        path, real = place
        if real in seen:
            continue
        seen.add(real)
        for entry in _entries(real):
            below = f"{path}{entry.name}"
            link = entry.is_symlink()
            if not (os.path.isdir(entry.path) if link else entry.is_dir()):
                yield below
            elif enter(entry.name):
                target = os.path.realpath(entry.path) if link else entry.path
                rank = 2 if entry.name[0] == "." or entry.name in NOT_RAW else int(link)
                waiting[rank].append((f"{below}/", target))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; nothing where it cannot be asked."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def stem_of(path: str) -> str:
    """A volume's path without its extension."""
    return path.removesuffix(".gz").removesuffix(".nii")


def named_like_a_mask(path: str) -> bool:
    """Whether a volume's name ends like that of a mask: `a_mask.nii`, `lesion.nii.gz`, `BraTS_001-seg.nii.gz`."""
    return re.split(r"[_\-+. ]", PurePosixPath(stem_of(path)).name.lower())[-1] in MASK_WORDS


def _not_of_the_study(path: str, paths: Collection[str]) -> str | None:
    *folders, name = PurePosixPath(path).parts
    if any(part.startswith(".") for part in (*folders, name)):
        return EXPECTED[0]
    if any(folder in NOT_RAW for folder in folders):
        return EXPECTED[1]
    if any(folder.startswith("derivatives") for folder in folders):
        return "in a folder derivatives*"
    if any(folder.lower() in MASK_WORDS or folder.lower().startswith("labels") for folder in folders):
        return "in a folder of masks"  # labelsTr of nnU-Net, labels of MONAI Label
    source, _, postfix = stem_of(path).rpartition("_")
    if postfix in RESULTS and any(f"{source}{end}" in paths for end in EXTENSIONS):
        return "a result of the image beside it"
    return None


def _results_below(root: Path, output_dir: str | Path | None) -> Callable[[str], str | None]:
    """Why a path lies among results: in the output folder, or in one where a run has left its traces."""
    output = Path(os.path.abspath(output_dir)) if output_dir is not None else None
    base = Path(os.path.abspath(root))

    @cache
    def reason(folder: PurePosixPath) -> str | None:
        if folder == PurePosixPath("."):
            return None  # results beside their images are known by their names
        place = base / folder
        if place == output:
            return "in the output folder"
        if any(next(place.glob(trace), None) for trace in TRACES):
            return f"in {folder}, among the results of a run"
        return reason(folder.parent)

    return lambda path: reason(PurePosixPath(path).parent)


def reasons(left_out: Mapping[str, str], shown: int = 3) -> str:
    """Reasons with the number of files of each and a few names, the most frequent first."""
    by_reason = defaultdict(list)
    for path, reason in left_out.items():
        by_reason[reason].append(path)
    return "; ".join(
        f"{len(paths)} {reason}: {', '.join(paths[:shown])}{', ...' if len(paths) > shown else ''}"
        for reason, paths in sorted(by_reason.items(), key=lambda item: -len(item[1]))
    )
