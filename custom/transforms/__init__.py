"""From a file to the symmetric pair, and from what a network says back to the file."""

from custom.support.rooms import opened

__getattr__, __all__ = opened(
    __name__,
    {
        "contract": ["InputContract"],
        "checks": ["CheckLabeld"],
        "views": ["PrepareViews"],
        "asymmetry": ["FeatureAsymmetryd"],
        "findings": ["RemoveSmallFindingsd", "segmented_row"],
        "augmentation": ["DeepAugmentationd"],
    },
)
