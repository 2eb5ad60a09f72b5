"""Midway registration: the midsagittal plane of a head, and the grid on which it is central."""

from custom.support.rooms import opened

__getattr__, __all__ = opened(
    __name__,
    {
        "plane": ["MidsagittalPlane", "estimate_plane"],
        "grid": ["aligned_grid", "to_grid", "from_grid"],
        "head": ["head_volume"],
    },
)
