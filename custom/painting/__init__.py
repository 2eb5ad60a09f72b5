"""Brains without end, and without a patient: painted from tissue maps, with every label for free."""

from custom.support.rooms import opened

__getattr__, __all__ = opened(
    __name__,
    {
        "anatomies": ["Anatomies"],
        "painter": ["Painter"],
        "dataset": ["PaintBrain", "placeholders"],
    },
)
