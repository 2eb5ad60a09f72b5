"""Whether a homologous counterpart can be trusted, and why not."""

from dataclasses import dataclass

LEAST_ALIKE = 0.8
"""Similarity below which the two sides are no counterparts: of 17 scans of real heads, most with a glioma, the least
has 0.85; noise within an outline reaches 0.66, within a strong one 0.80."""
TIGHTEST = 0.2
"""Smallest Jacobian determinant that a field keeps; it is smoothed until it does."""


@dataclass(frozen=True)
class CounterpartQuality:
    """How far a homologous counterpart can be trusted.

    Args:
        mirror_similarity: correlation of the local structure of a volume and its mirror image, -1 to 1.
        similarity: the same of a volume and its homologous counterpart.
        trusted: share of the head's structure whose counterpart was found and not filled in from around, 0 to 1.
        largest_mm: the largest displacement, mm.
        smallest_jacobian: below 0 a place is folded; 1 is no change of volume.
    """

    mirror_similarity: float
    similarity: float
    trusted: float
    largest_mm: float
    smallest_jacobian: float


def distrust_counterpart(quality: CounterpartQuality) -> str | None:
    """Why a field cannot be trusted and the mirror is used, in one sentence with the figure, or None."""
    rules = [
        (
            quality.similarity < quality.mirror_similarity,
            f"the homologous counterpart matches less (similarity {quality.similarity:.2f}) than the mirror image "
            f"({quality.mirror_similarity:.2f})",
        ),
        (
            quality.similarity < LEAST_ALIKE,
            f"the two sides stay unlike (similarity {quality.similarity:.2f}, at least {LEAST_ALIKE:g} needed)",
        ),
        (
            quality.trusted < 0.6,
            f"only {quality.trusted:.0%} of the head has a counterpart that is alike (at least 60% needed)",
        ),
        (quality.largest_mm > 25, f"the two sides would move by {quality.largest_mm:.0f} mm (at most 25 allowed)"),
        (
            quality.smallest_jacobian < TIGHTEST / 2,
            f"the field nearly folds (Jacobian {quality.smallest_jacobian:.2f}, at least {TIGHTEST / 2:g} needed)",
        ),
    ]
    return next((reason for broken, reason in rules if broken), None)
