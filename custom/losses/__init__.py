"""The symmetry-aware head's loss, the other pretext losses, each by itself, and their weighted sum."""

from custom.support.rooms import opened

__getattr__, __all__ = opened(
    __name__,
    {
        "pretext": ["PretextLoss", "PRETEXT_TASKS", "OBJECTIVES", "pretext_weights"],
        "symmetry": ["symmetry_loss"],
        "contrastive": ["contrastive_loss"],
        "dense": ["tissue_loss", "lesion_loss", "homologous_loss", "UNKNOWN"],
    },
)
