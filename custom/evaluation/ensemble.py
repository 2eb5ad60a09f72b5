"""Several weights used together, as those of the folds of one training: their mean, and where they disagree.

Shapes: M members, K classes, B volumes `(B, K, X, Y, Z)`, or `(B, K)` of a classifier.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from monai.config import KeysCollection
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch import Tensor, nn

from custom.weights.transfer import load_checkpoint, transfer

DISAGREEMENT = "disagreement"
"""Key under which the disagreement of members is left."""


class Ensemble(Inferer):
    """Run an inferer with the engine's network and with copies of it that have other weights, one after the other.

    Args:
        inferer: MONAI's, or one of `custom.evaluation.inferers`.
        network: whose copies the others are.
        others: checkpoints of all members but the first, which the engine's network has.

    Shape:
        - output: logits of all members, `(B, M K, ...)`

    Raises:
        WeightsError: at the first call, when a checkpoint does not fit the network.
    """

    def __init__(self, inferer: Inferer, network: nn.Module, others: Sequence[str]) -> None:
        super().__init__()
        self.inferer, self.network, self.others = inferer, network, others
        self.members: list[nn.Module] = []

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        self.members = self.members or [self.member(path).to(inputs.device) for path in self.others]
        return torch.cat([self.inferer(inputs, one, *args, **kwargs) for one in (network, *self.members)], 1)

    def member(self, path: str) -> nn.Module:
        """A copy of the network with the weights of a checkpoint, for prediction."""
        copy = deepcopy(self.network)
        transfer(copy, load_checkpoint(path), parts=("",), minimum=1.0)
        return copy.eval()


def ensemble_of(inferer: Inferer, network: nn.Module, checkpoints: Sequence[str]) -> Inferer:
    """The inferer of one or several weights: of one, it stays what it is."""
    return Ensemble(inferer, network, checkpoints[1:]) if len(checkpoints) > 1 else inferer


def disagreement(probabilities: Tensor) -> Tensor:
    """The largest standard deviation over members of any class's probability, `(M, K, ...)` to `(1, ...)`.

    It is 0 where all say the same, and 0.5 where one half is sure of what the other half excludes.
    """
    return probabilities.std(0, correction=0).amax(0, keepdim=True)


class MeanOfMembersd(MapTransform):
    """Logits of an ensemble to its mean probabilities; of one member that is the softmax, and nothing else.

    Args:
        keys: the logits `(M K, ...)`, which become probabilities `(K, ...)`.
        members: M; of two or more, the disagreement `(1, ...)` is left under `DISAGREEMENT`.
    """

    def __init__(self, keys: KeysCollection, members: int = 1) -> None:
        super().__init__(keys)
        self.members = members

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            probabilities = d[key].unflatten(0, (self.members, -1)).softmax(1)  # M, K, ...
            d[key] = probabilities.mean(0)
            if self.members > 1:
                d[DISAGREEMENT] = disagreement(probabilities)
        return d
