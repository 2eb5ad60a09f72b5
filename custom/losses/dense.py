"""Losses of places, whose labels painted brains have for free: tissue, lesion, and the homologous place.

Shapes: B images, T classes; labels `UNKNOWN` count nowhere.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from custom.support.distributed import mean_count

UNKNOWN = 255
"""Label of a place of which nothing is known."""
MOST_PLACES = 1024
"""Of an image, that are told apart from one another."""


def tissue_loss(logits: Tensor, tissue: Tensor) -> Tensor:
    """Cross-entropy of the tissue of each place; 0 where none is known.

    Args:
        logits: `(B, T, X, Y, Z)`.
        tissue: `(B, 1, X, Y, Z)`, classes or `UNKNOWN`.
    """
    known = mean_count((tissue != UNKNOWN).sum()).clamp_min(1)
    return F.cross_entropy(logits.float(), tissue[:, 0], ignore_index=UNKNOWN, reduction="sum") / known


def lesion_loss(logits: Tensor, lesion: Tensor, smooth: float = 1.0) -> Tensor:
    """Binary cross-entropy of the lesion, and Dice loss where there is one; the mean over images in which it is known.

    Where none is, the cross-entropy alone says so: the Dice loss of a healthy brain would outweigh all that there is to
    learn, and nothing would be found at all.

    Args:
        logits: `(B, 1, X, Y, Z)`.
        lesion: `(B, 1, X, Y, Z)`, 0, 1, or all `UNKNOWN`; where it is known in no image, the loss is 0.
        smooth: voxels, added to both terms of the Dice coefficient.
    """
    known = (lesion[:, 0, 0, 0, 0] != UNKNOWN).float()
    truth = lesion.float().clamp_max(1).flatten(1)
    logits = logits.float().flatten(1)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
    probability = logits.sigmoid()
    overlap = (2 * (probability * truth).sum(1) + smooth) / (probability.sum(1) + truth.sum(1) + smooth)
    losses = entropy + (1 - overlap) * truth.any(1)
    return (known * losses).sum() / mean_count(known.sum()).clamp_min(1e-6)


def homologous_loss(places: Tensor, alike: Tensor, temperature: float = 0.1) -> Tensor:
    """A place is to find itself in the other scanner's image, and its homologous place there, among all places.

    Args:
        places: embeddings of the places of image and counterpart, `(2B, 2, D, x, y, z)`, the second scanner's after
            those of the first; the counterpart's at the places that they are homologous to.
        alike: `(2B, 1, X, Y, Z)` bool: healthy tissue at the place and at its homologous one.
        temperature: divides the cosine similarities.

    References:
        NT-Xent of places, as in Liu et al., Brain-ID, arXiv 2311.16914, and Dey et al., anatomix, arXiv 2411.02372.
    """
    step = [big // small for big, small in zip(alike.shape[2:], places.shape[3:], strict=True)]
    alike = alike[:, 0, step[0] // 2 :: step[0], step[1] // 2 :: step[1], step[2] // 2 :: step[2]].flatten(1)
    thin = math.ceil(alike.shape[1] / MOST_PLACES)
    own = F.normalize(places.float().flatten(3)[..., ::thin], dim=2)
    known = alike[: len(alike) // 2, ::thin].bool()
    one, other = own.chunk(2)
    pairs = ((one[:, 0], other[:, 0]), (one[:, 0], other[:, 1]), (other[:, 0], one[:, 1]))
    return sum(found(*pair, known, temperature) for pair in pairs) / len(pairs)


def found(one: Tensor, other: Tensor, known: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each known place of `(B, D, N)` embeddings among the known places of the others."""
    logits = torch.einsum("bdn,bdm->bnm", one, other) / temperature
    logits = logits.masked_fill(~known[:, None], -1e4)
    index = torch.arange(known.shape[1], device=known.device).expand_as(known)
    losses = F.cross_entropy(logits.transpose(1, 2), index, reduction="none")
    return (losses * known).sum() / mean_count(known.sum()).clamp_min(1)
