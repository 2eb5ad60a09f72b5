"""Volume files, which are not trusted: reading and writing."""

from custom.support.rooms import opened

__getattr__, __all__ = opened(
    __name__,
    {
        "loading": ["LoadVolumed", "load_volume"],
        "nifti": ["read_volume", "write_nifti", "VolumeFileError"],
        "saving": ["SaveVolumed"],
    },
)
