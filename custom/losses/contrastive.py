"""The contrastive loss of whole images: NT-Xent."""

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(one: Tensor, other: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent: of two views of B images, each is to find the other view of its image among all others.

    The numbers of `monai.losses.ContrastiveLoss`, which copies a mask from the host in every step, so that a GPU has to
    wait for it.

    Args:
        one: embeddings of the first view, `(B, D)`.
        other: those of the second, in the same order.
        temperature: divides the cosine similarities.

    Returns:
        A scalar, the mean over the 2B views.

    References:
        Chen et al., A Simple Framework for Contrastive Learning, ICML 2020, eq. 1.
    """
    views = torch.cat([one, other])
    similarity = F.cosine_similarity(views[:, None], views[None], dim=2) / temperature
    place = torch.arange(len(views), device=views.device)
    own = place[:, None] == place
    return F.cross_entropy(similarity.masked_fill(own, -torch.inf), place.roll(len(one)))
