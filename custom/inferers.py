"""Embeddings and the zero-shot asymmetry score of a whole volume, and one evaluation step of pretraining."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data.utils import dense_patch_slices
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from monai.networks import eval_mode
from monai.utils import ensure_tuple_rep
from torch import Tensor

from custom.losses import PretextLoss
from custom.metrics import asymmetry_score
from custom.networks import SASwinPretrainer
from custom.views import PrepareViews


class WindowedEmbedding(Inferer):
    """Embed a volume window by window: the mean embedding, and the mean asymmetry of the windows.

    The score is taken per window: a lesion breaks the symmetry of the window that holds it, while the mean embeddings
    of a volume and of its mirror image, over all windows, are the same by construction.

    Args:
        roi_size: window in voxels, X Y Z: the ROI of pretraining.
        overlap: of neighbouring windows, as a share of the ROI.

    Shape:
        - pair: `(B, 2C, X, Y, Z)`; returns `embedding` `(B, D)` and `asymmetry` `(B,)`
    """

    def __init__(self, roi_size: Sequence[int], overlap: float = 0.25) -> None:
        super().__init__()
        self.roi_size = ensure_tuple_rep(roi_size, 3)
        self.overlap = overlap

    def __call__(self, inputs: Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        size = inputs.shape[2:]
        roi = tuple(min(r, s) for r, s in zip(self.roi_size, size, strict=True))
        step = tuple(max(1, int(r * (1 - self.overlap))) for r in roi)
        embeddings, scores = [], []
        for window in dense_patch_slices(size, roi, step):
            embedding, mirrored = network(inputs[(slice(None), slice(None), *window)]).chunk(2, dim=1)
            embeddings.append(embedding.float())
            scores.append(asymmetry_score(embedding, mirrored))
        return {"embedding": torch.stack(embeddings).mean(0), "asymmetry": torch.stack(scores).mean(0)}


class PretextEvaluation:
    """Iteration of the pretraining evaluator: pretext losses on fixed views, zero-shot score on the whole volume.

    `engine.state.output` then holds `image`, `pred` (of `WindowedEmbedding`), `label` (healthy, where known)
    and `losses` (those of the batch, repeated for each of its cases).

    Args:
        network: the pretrainer itself, not its distributed wrapper.
        loss_function: its parts are reported.
        prepare_views: makes the views; with `repeat`, the same ones in every evaluation.
    """

    def __init__(self, network: SASwinPretrainer, loss_function: PretextLoss, prepare_views: PrepareViews) -> None:
        self.network = network
        self.loss_function = loss_function
        self.prepare_views = prepare_views

    def __call__(self, engine: SupervisedEvaluator, batch: Mapping[str, Any]) -> dict[str, Any]:
        device = engine.state.device
        image = batch["image"].to(device)
        with eval_mode(self.network), torch.autocast(device.type, enabled=engine.amp):
            views, targets = self.prepare_views(batch, device)
            self.loss_function(self.network.pretext(views), targets)
            pred = engine.inferer(image, self.network)
        losses = {name: torch.full((len(image),), value) for name, value in self.loss_function.parts.items()}
        engine.state.output = {"image": image, "pred": pred, "losses": losses}
        if "healthy" in batch:
            engine.state.output["label"] = torch.as_tensor(batch["healthy"])
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output
