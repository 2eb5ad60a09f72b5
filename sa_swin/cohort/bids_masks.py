"""Masks of a BIDS folder: where they may lie, and which of them is of an image."""

from collections.abc import Sequence
from pathlib import Path

from custom.data.bids_names import BidsFile, ignored
from custom.data.case import CohortError
from sa_swin.cohort.bids_files import nifti_files, parse_choice

DERIVED = ("label", "desc", "space", "res", "den", "atlas", "seg", "mod")  # what a derivative's name says of itself
NATIVE = ("orig", "native", "individual", "scanner")  # spaces that are the image's own


def match_mask(
    images: Sequence[BidsFile], masks: Sequence[BidsFile], choice: str | None
) -> tuple[str | None, str | None]:
    """The mask of a case, and why there is none.

    Of the masks that contradict no entity of one of the channels, and lie in its space unless the choice names another,
    the one that shares the most, then the one whose name says the least beyond the choice.
    """
    if not choice:
        return None, None
    asked = parse_choice(choice)[1]
    fitting = [mask for mask in masks if any(_agrees(mask, image) for image in images)]
    here = [mask for mask in fitting if "space" in asked or any(_in_space_of(mask, image) for image in images)]
    if fitting and not here:
        spaces = ", ".join(sorted({f"space-{mask.entities['space']}" for mask in fitting}))
        return None, f"its {choice} is in another space ({spaces}), not on the image's grid"
    if not here:
        return None, f"no {choice}"

    def rank(mask: BidsFile) -> tuple[int, int]:
        shared = [key for key in mask.entities if key not in DERIVED]
        further = [key for key in mask.entities if key in DERIVED and key not in asked and key not in ("space", "mod")]
        return -len(shared), len(further)

    best = [mask for mask in here if rank(mask) == min(map(rank, here))]
    if len(best) > 1:
        listed = ", ".join(mask.path for mask in best)
        return (
            None,
            f"{len(best)} files are its {choice}: {listed}; name an entity, as in desc-x_{choice}, or --derivative",
        )
    return best[0].path, None


def _agrees(mask: BidsFile, image: BidsFile) -> bool:
    """Whether no entity of a mask speaks of another image."""
    own = {key: value for key, value in mask.entities.items() if key not in DERIVED}
    modality = mask.entities.get("mod", image.suffix)
    return modality == image.suffix and all(image.entities.get(key) == value for key, value in own.items())


def _in_space_of(mask: BidsFile, image: BidsFile) -> bool:
    space, own = mask.entities.get("space"), image.entities.get("space")
    return space == own or (own is None and (space in NATIVE or space == image.suffix))


def mask_files(root: Path, files: Sequence[BidsFile], derivative: str | None) -> list[BidsFile]:
    """Where masks may be: among the raw files and in all pipelines, or in the one that is named.

    Raises:
        CohortError: no such pipeline.
    """
    base = root / "derivatives"
    if derivative is None:
        is_ignored = ignored(root)
        found = nifti_files(root, base) if base.is_dir() else ()
        return [*files, *(file for file in found if not is_ignored(file.path))]
    inside = base / derivative
    folder = inside if inside.is_dir() else Path(derivative)
    if not folder.is_dir():
        raise CohortError(f"no derivatives at {inside}; give the masks' pipeline with --derivative")
    return list(nifti_files(root, folder))
