"""The symmetry loss: healthy brains towards their mirrored counterparts, the others apart."""

import torch
from torch import Tensor


def symmetry_loss(asymmetry: Tensor, healthy: Tensor | None = None, margin: float = 0.0) -> Tensor:
    """Pull a healthy brain towards its mirrored counterpart, and push an abnormal one apart.

    With `s = 1 - asymmetry` (the paper's is a cosine similarity), a healthy pair costs `1 - s` and an abnormal one
    `max(0, s - margin)`.

    Args:
        asymmetry: `(B,)`, how far each image differs from its mirrored counterpart, 0 (alike) to 2.
        healthy: `(B,)` booleans; None takes every pair as healthy (mirrored agreement without push).
        margin: similarity, in [-1, 1], below which an abnormal pair costs nothing.

    Returns:
        A scalar, the mean over the batch.

    Raises:
        ValueError: when the number of labels does not agree.

    References:
        Ma et al., MICCAI 2024, section 2 (symmetry-aware head); form after Hadsell et al., CVPR 2006, eq. 4.

    Examples:
        >>> alike = torch.tensor([0.0])
        >>> symmetry_loss(alike, torch.tensor([True])).item(), symmetry_loss(alike, torch.tensor([False])).item()
        (0.0, 1.0)
    """
    if healthy is None:
        return asymmetry.mean()
    if healthy.shape != asymmetry.shape:
        raise ValueError(f"one healthy label per image: got {tuple(healthy.shape)} for {len(asymmetry)} images")
    return torch.where(healthy.bool(), asymmetry, (1 - asymmetry - margin).clamp_min(0)).mean()
