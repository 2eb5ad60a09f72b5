"""The weighted sum of the pretext losses, with each part at hand.

Shapes: B images, D embedding; in pretraining the two views of a batch are stacked, view one first: `(2B, ...)`.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from custom.losses.contrastive import contrastive_loss
from custom.losses.dense import homologous_loss, lesion_loss, tissue_loss
from custom.losses.symmetry import symmetry_loss
from custom.support.distributed import gather_batch
from custom.support.errors import UserError

PRETEXT_TASKS = ("inpainting", "rotation", "contrastive", "symmetry", "tissue", "lesion", "homologous")
"""The paper's four, and those of painted brains, whose every place has its labels."""
PAINTED_TASKS = PRETEXT_TASKS[4:]

OBJECTIVES: dict[str, dict[str, float]] = {
    "paper": {"inpainting": 1.0, "rotation": 1.0, "contrastive": 1.0, "symmetry": 0.5},
    "balanced": {"inpainting": 0.1, "rotation": 0.1, "contrastive": 0.1, "symmetry": 10.0},
    "label_free": {"inpainting": 1.0, "rotation": 1.0, "contrastive": 1.0, "symmetry": 0.5},
    "no_symmetry": {"inpainting": 1.0, "rotation": 1.0, "contrastive": 1.0},
    "reconstruction": {"inpainting": 1.0},
    "painted": {"tissue": 1.0, "lesion": 1.0},
}
"""Pretext objectives by name, as weights of the tasks; a task that is not named has none. `balanced` are the paper's
tasks with weights under which the symmetry loss falls: under the paper's own it stays at 0.5. `label_free` needs no
`healthy` label: it pulls every image towards its mirrored counterpart and pushes none apart. `painted` is for painted
brains: which tissue each place is, and whether a lesion is there."""


class PretextLoss(nn.Module):
    """Weighted sum of the losses of `PRETEXT_TASKS`.

    Tasks of painted brains are passed over where none are in the batch. The contrastive loss is over the batches of all
    processes. After each call `parts` holds the unweighted value of every such task with a weight, and `loss`, their
    sum; it is empty where no task has anything to go by.

    Args:
        objective: one of `OBJECTIVES`.
        weights: task to weight; what is named here replaces the objective's weight.
        temperature: of the contrastive loss.
        margin: of the symmetry loss.
        painted: share of the brains that are painted; None leaves out the checks that need it.

    Raises:
        UserError: on an unknown objective or task, a negative weight, tasks of painted brains without them, real brains
            without a task, or the homologous loss beside tasks that turn the views.

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
        painted: float | None = None,
    ) -> None:
        super().__init__()
        self.weights = pretext_weights(objective, weights or {})
        self.dense = any(self.weights[task] for task in PAINTED_TASKS)
        self.painted_only = not any(self.weights[task] for task in PRETEXT_TASKS if task not in PAINTED_TASKS)
        self.check(painted)
        self.needs_healthy = objective != "label_free" and self.weights["symmetry"] > 0
        self.temperature = temperature
        self.margin = margin
        self.parts: dict[str, Tensor] = {}

    def check(self, painted: float | None) -> None:
        """Refuse tasks that have no brains, and brains that have no task."""
        tasks = "{'tissue': 1, 'lesion': 1}"
        if painted == 0 and self.dense:
            raise UserError("the objective is of painted brains; give --painted a share above 0, or choose another")
        if painted is not None and painted < 1 and self.painted_only:
            raise UserError(
                "the objective asks nothing of brains that are not painted; take one of the paper's, and add the "
                f'others: --objective paper --loss_weights "{tasks}"'
            )
        if self.weights["homologous"] and not self.painted_only:
            raise UserError(
                "the homologous loss needs views that are not turned: only with other tasks of painted brains"
            )

    def forward(self, pred: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        tasks = [
            task
            for task, weight in self.weights.items()
            if weight and (task not in PAINTED_TASKS or "tissue" in target)
        ]
        values = {task: getattr(self, f"{task}_loss")(pred, target) for task in tasks}
        if not values:
            self.parts = {}
            return next(iter(pred.values())).new_zeros(())
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

    def tissue_loss(self, pred: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        return tissue_loss(pred["tissue"], target["tissue"])

    def lesion_loss(self, pred: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        return lesion_loss(pred["lesion"], target["lesion"])

    def homologous_loss(self, pred: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        return homologous_loss(pred["places"], target["alike"])


def pretext_weights(objective: str, weights: Mapping[str, float]) -> dict[str, float]:
    """Weights of all tasks: those of a named objective, with `weights` on top."""
    if objective not in OBJECTIVES:
        raise UserError(f"unknown objective '{objective}', choose one of {', '.join(OBJECTIVES)}")
    unknown = set(weights) - set(PRETEXT_TASKS)
    if unknown:
        raise UserError(f"unknown pretext task {sorted(unknown)}, choose from {', '.join(PRETEXT_TASKS)}")
    merged = {**dict.fromkeys(PRETEXT_TASKS, 0.0), **OBJECTIVES[objective], **weights}
    if min(merged.values()) < 0 or not any(merged.values()):
        raise UserError(f"weights must not be negative, and one must be positive, got {merged}")
    return merged
