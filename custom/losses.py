"""The symmetry loss, and the weighted sum of the pretext losses with each part at hand.

Shapes: B images, D embedding; in pretraining the two views of a batch are stacked, view one first: `(2B, ...)`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from custom.support.distributed import gather_batch
from custom.support.errors import UserError

PRETEXT_TASKS = ("inpainting", "rotation", "contrastive", "symmetry")

OBJECTIVES: dict[str, dict[str, float]] = {
    "paper": {"inpainting": 1.0, "rotation": 1.0, "contrastive": 1.0, "symmetry": 0.5},
    "label_free": {"inpainting": 1.0, "rotation": 1.0, "contrastive": 1.0, "symmetry": 0.5},
    "no_symmetry": {"inpainting": 1.0, "rotation": 1.0, "contrastive": 1.0, "symmetry": 0.0},
    "reconstruction": {"inpainting": 1.0, "rotation": 0.0, "contrastive": 0.0, "symmetry": 0.0},
}
"""Pretext objectives by name, as weights of the tasks. `label_free` needs no `healthy` label: it pulls every image
towards its mirrored counterpart and pushes none apart."""


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


class PretextLoss(nn.Module):
    """Weighted sum of the inpainting, rotation, contrastive (NT-Xent) and symmetry losses.

    The contrastive loss is over the batches of all processes. After each call `parts` holds the unweighted value of
    every task with a weight, and `loss`, their weighted sum.

    Args:
        objective: one of `OBJECTIVES`: `paper`, `label_free`, `no_symmetry` or `reconstruction`.
        weights: task to weight; what is named here replaces the objective's weight.
        temperature: of the contrastive loss.
        margin: of the symmetry loss.

    Raises:
        ValueError: on an unknown objective or task, or a negative weight.

    References:
        Ma et al., MICCAI 2024, section 2; NT-Xent: Chen et al., A Simple Framework for Contrastive Learning, ICML 2020,
        eq. 1.
    """

    def __init__(
        self,
        objective: str = "paper",
        weights: Mapping[str, float] | None = None,
        temperature: float = 0.5,
        margin: float = 0.0,
    ) -> None:
        super().__init__()
        self.weights = pretext_weights(objective, weights or {})
        self.needs_healthy = objective != "label_free" and self.weights["symmetry"] > 0
        self.temperature = temperature
        self.margin = margin
        self.parts: dict[str, Tensor] = {}

    def forward(self, pred: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        values = {task: getattr(self, f"{task}_loss")(pred, target) for task, weight in self.weights.items() if weight}
        total = sum(self.weights[task] * value for task, value in values.items())
        self.parts = {"loss": total.detach(), **{task: value.detach() for task, value in values.items()}}
        return total

    def inpainting_loss(self, pred: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        return F.l1_loss(pred["inpainting"], target["image"])

    def rotation_loss(self, pred: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(pred["rotation"], target["rotation"])

    def contrastive_loss(self, pred: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        views = (gather_batch(view) for view in pred["contrastive"].float().chunk(2))
        return contrastive_loss(*views, self.temperature)

    def symmetry_loss(self, pred: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        healthy = target["healthy"] if self.needs_healthy else None
        return symmetry_loss(pred["asymmetry"], healthy, self.margin)


def pretext_weights(objective: str, weights: Mapping[str, float]) -> dict[str, float]:
    """Weights of the four tasks: those of a named objective, with `weights` on top."""
    if objective not in OBJECTIVES:
        raise UserError(f"unknown objective '{objective}', choose one of {', '.join(OBJECTIVES)}")
    unknown = set(weights) - set(PRETEXT_TASKS)
    if unknown:
        raise UserError(f"unknown pretext task {sorted(unknown)}, choose from {', '.join(PRETEXT_TASKS)}")
    merged = {**OBJECTIVES[objective], **weights}
    if min(merged.values()) < 0 or not any(merged.values()):
        raise UserError(f"weights must not be negative, and one must be positive, got {merged}")
    return merged
