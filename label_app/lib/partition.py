"""Which labelled cases are trained on, and which ones choose the best epoch."""

import hashlib
from pathlib import Path

Pairs = list[dict[str, str]]
"""Cases with the paths of `image` and `label`."""


def partition(pairs: Pairs, share: float) -> tuple[Pairs, Pairs]:
    """Labelled cases to train on, and to choose the best epoch on.

    A case stays on its side however many others come: its name decides, not its place in the list. At least one is
    trained on.

    Args:
        pairs: of image and label.
        share: of the cases to validate on, 0 to 1; about, by chance.
    """
    held_out = [pair for pair in pairs if _lot(Path(pair["image"]).name) < share]
    training = [pair for pair in pairs if pair not in held_out]
    return (training, held_out) if training else (held_out, [])


def _lot(name: str) -> float:
    """A number from 0 to 1 that a name alone decides."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
