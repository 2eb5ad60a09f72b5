"""Whole volumes, window by window: segmentation with the mirrored brain's, embeddings and the zero-shot score.

Also one evaluation step of pretraining.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from itertools import product
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer, SlidingWindowInferer
from monai.networks import eval_mode
from monai.utils import ensure_tuple_rep
from torch import Tensor

from custom.losses import PretextLoss
from custom.networks.heads import SHARPNESS, peak
from custom.networks.pretrainer import SASwinPretrainer
from custom.support.errors import UserError
from custom.support.precision import autocast
from custom.symmetry import mirror
from custom.transforms.views import PrepareViews


class WindowedEmbedding(Inferer):
    """Embed a volume window by window: the mean embedding, and the peak asymmetry of the windows.

    The score is taken per window, since a lesion breaks the symmetry of the window that holds it. Over the windows
    it is a soft maximum (`custom.networks.heads.peak`), as it is over places within one.

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
            result = network(inputs[(slice(None), slice(None), *window)]).float()
            scores.append(result[:, 0])
            embeddings.append(result[:, 1:])
        return {"embedding": torch.stack(embeddings).mean(0), "asymmetry": peak(torch.stack(scores, -1), SHARPNESS)}


class SlidingWindow(SlidingWindowInferer):
    """MONAI's, with windows no larger than the volume: it would pad, and no training has seen padding.

    Args:
        See `monai.inferers.SlidingWindowInferer`.
    """

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        within = copy(self)  # with all its options
        within.roi_size = tuple(map(min, ensure_tuple_rep(self.roi_size, 3), inputs.shape[2:]))
        return SlidingWindowInferer.__call__(within, inputs, network, *args, **kwargs)


class MirroredSlidingWindow(Inferer):
    """Predict a volume window by window, like MONAI's `SlidingWindowInferer`, and the mirrored brain with it.

    The windows of the mirrored brain hold the same halves, swapped, and so the same encoder features: mirror test-time
    augmentation costs one decoder more, not a second run. The windows lie mirror-symmetrically, so that every place
    is predicted as often from either side. Beside the logits only their weights are held, one channel.

    Args:
        roi_size: window in voxels, X Y Z.
        sw_batch_size: windows at once.
        overlap: of neighbouring windows, as a share of the ROI.
        mode: weights of a window's voxels, MONAI's `gaussian` or `constant`.
        mirrored: average with the prediction of the mirrored brain.

    Shape:
        - inputs: a symmetric pair `(B, 2C, X, Y, Z)`; returns `(B, K, X, Y, Z)` logits

    Raises:
        ValueError: when the mirrored brain is asked for and the network has no `predict_both`.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        sw_batch_size: int = 1,
        overlap: float = 0.5,
        mode: str = "gaussian",
        mirrored: bool = True,
    ) -> None:
        super().__init__()
        self.roi_size = ensure_tuple_rep(roi_size, 3)
        self.sw_batch_size, self.overlap, self.mode = sw_batch_size, overlap, mode
        self.mirrored = mirrored

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        if self.mirrored and not hasattr(network, "predict_both"):
            raise ValueError(f"mirrored prediction needs a network with predict_both, got {type(network).__name__}")
        logits = torch.cat([self.predict(pair, network) for pair in inputs.as_subclass(Tensor).split(1)])
        if isinstance(inputs, MetaTensor):  # its place in space, for whoever brings the logits back to the file
            return MetaTensor(logits).copy_meta_from(inputs, copy_attr=False)
        return logits

    def predict(self, pair: Tensor, network: Callable[..., Tensor]) -> Tensor:
        """Logits of one pair, `(1, 2C, X, Y, Z)` to `(1, K, X, Y, Z)`."""
        size = tuple(pair.shape[2:])
        roi = tuple(map(min, self.roi_size, size))
        starts = list(product(*(symmetric_starts(*axis, self.overlap) for axis in zip(size, roi, strict=True))))
        weights = compute_importance_map(roi, self.mode, device=pair.device, dtype=torch.float32)
        weights = weights.clamp_min(max(weights.min().item(), 1e-3))  # as MONAI's inferer does
        total = pair.new_zeros(size, dtype=torch.float32)
        logits = None
        for first in range(0, len(starts), self.sw_batch_size):
            batch = starts[first : first + self.sw_batch_size]
            for start, window in self.predict_windows(pair, network, batch, roi):
                place = tuple(slice(s, s + r) for s, r in zip(start, roi, strict=True))
                if logits is None:
                    logits = pair.new_zeros((1, len(window), *size), dtype=torch.float32)
                logits[0, :, *place].addcmul_(window.float(), weights)
                total[place] += weights
        return logits.div_(total)

    def predict_windows(
        self, pair: Tensor, network: Callable[..., Tensor], starts: Sequence[tuple[int, ...]], roi: tuple[int, ...]
    ) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """Logits `(K, x, y, z)` of some windows, and where each starts; those of the mirrored brain reflected back."""
        windows = torch.cat([pair[:, :, x : x + roi[0], y : y + roi[1], z : z + roi[2]] for x, y, z in starts])
        logits, swapped = network.predict_both(windows) if self.mirrored else (network(windows), None)
        yield from zip(starts, logits, strict=True)
        if swapped is not None:
            for (x, y, z), window in zip(starts, swapped, strict=True):
                yield (pair.shape[2] - roi[0] - x, y, z), mirror(window)


def sliding_window(
    roi_size: Sequence[int],
    overlap: float = 0.5,
    mirror_tta: bool = False,
    counterpart: str = "mirror",
    sw_batch_size: int = 2,
) -> Inferer:
    """The segmenter's windows: `SlidingWindow`, or with mirror test-time augmentation `MirroredSlidingWindow`.

    Args:
        roi_size: window in voxels, X Y Z.
        overlap: of neighbouring windows, as a share of the ROI.
        mirror_tta: take the mean with the prediction of the mirrored brain.
        counterpart: of the contract: the halves of a pair are each other's mirror image only with `mirror`.
        sw_batch_size: windows at once.

    Raises:
        UserError: mirror test-time augmentation with another counterpart than the mirror image.
    """
    if mirror_tta and counterpart != "mirror":
        raise UserError(
            f"mirror_tta needs pairs of an image and its mirror image, but counterpart is {counterpart}; "
            "leave --mirror_tta out"
        )
    kind = MirroredSlidingWindow if mirror_tta else SlidingWindow
    return kind(roi_size, sw_batch_size, overlap, mode="gaussian")


def symmetric_starts(size: int, roi: int, overlap: float) -> list[int]:
    """Where the windows of one axis start: evenly, from edge to edge, no further apart than the overlap allows.

    The mirror image of every window is a window, too.
    """
    room, step = size - roi, max(1, int(roi * (1 - overlap)))
    gaps = -(-room // step)
    if gaps % 2 == 0 and room % 2:  # no window can lie in the middle
        gaps += 1
    near = [-(-room * i // gaps) for i in range((gaps + 1) // 2)]
    middle = [room // 2] if gaps % 2 == 0 else []
    return [*near, *middle, *(room - start for start in reversed(near))]


class PretextEvaluation:
    """Iteration of the pretraining evaluator: pretext losses on fixed views, zero-shot score on the whole volume.

    `engine.state.output` then holds `image`, `pred` (of `WindowedEmbedding`), `label` (healthy, where known)
    and `losses` (those of the batch, repeated for each of its cases); of painted brains also `rescan`,
    as `pred`, of the same heads by another scanner.

    Args:
        network: the pretrainer itself, not its distributed wrapper.
        loss_function: its parts are reported.
        prepare_views: makes the views; with `repeat`, the same ones in every evaluation.
        precision: of the network, as in `custom.support.precision.working_dtype`.
    """

    def __init__(
        self,
        network: SASwinPretrainer,
        loss_function: PretextLoss,
        prepare_views: PrepareViews,
        precision: str = "auto",
    ) -> None:
        self.network = network
        self.loss_function = loss_function
        self.prepare_views = prepare_views
        self.precision = precision

    def __call__(self, engine: SupervisedEvaluator, batch: Mapping[str, Any]) -> dict[str, Any]:
        device = engine.state.device
        image = batch["image"].to(device)
        with eval_mode(self.network), autocast(self.precision, device):
            views, targets = self.prepare_views(batch, device)
            self.loss_function(self.network.pretext(views), targets)
            pred = engine.inferer(image, self.network)
        parts = self.loss_function.parts
        values = torch.stack([*parts.values()]).cpu() if parts else ()  # at once: the GPU is waited for
        losses = {name: value.expand(len(image)) for name, value in zip(parts, values, strict=True)}
        engine.state.output = {"image": image, "pred": pred, "losses": losses}
        if "healthy" in batch:
            engine.state.output["label"] = torch.as_tensor(batch["healthy"])
        if "rescan" in batch:
            with eval_mode(self.network), autocast(self.precision, device):
                engine.state.output["rescan"] = engine.inferer(batch["rescan"].to(device), self.network)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output
