"""Weights: transfer, conversion, and what they have seen."""

from custom.support.rooms import opened

__getattr__, __all__ = opened(
    __name__,
    {
        "loader": ["PretrainedLoader"],
        "pretrained": ["from_pretrained", "pretrained_file"],
        "provenance": ["LeakageGuard", "record_training"],
        "settings": ["Weights"],
        "transfer": ["load_checkpoint", "weights_digest"],
    },
)
