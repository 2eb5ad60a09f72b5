"""SACA, the encoder, what is read out, and one network per bundle."""

from custom.support.rooms import opened

__getattr__, __all__ = opened(
    __name__,
    {
        "classifier": ["SASwinClassifier"],
        "pretrainer": ["SASwinPretrainer"],
        "segmenter": ["SASwinUNETR"],
        "encoder": ["SwinEncoder"],
        "saca": ["SymmetryAwareCrossAttention"],
        "encoding": ["SymmetryAwareEncoding", "refuse_size"],
    },
)
