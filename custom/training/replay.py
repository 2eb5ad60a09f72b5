"""A training step that the host does not hold up: a GPU replays its forward and backward pass as one CUDA graph.

A step of these networks is thousands of small kernels, which the host launches more slowly than a GPU computes them.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map_only

PLAIN_STEPS = 3
"""Steps of one shape before it is recorded: libraries choose their algorithms, caches fill."""

logger = logging.getLogger(__name__)


class TrainingStep:
    """The iteration of MONAI's `SupervisedTrainer`, in a form that can be replayed: its `iteration_update`.

    It computes what MONAI's does. The events between forward and backward pass come after the latter. In
    `engine.state.output`, at the end a list of one dictionary, image and label are without MONAI's metadata; replayed,
    all there is overwritten by the next step. The trainer's `decollate` would wait for the GPU: it must be off.

    Args:
        cuda_graph: replay the step on a GPU, in a training of one process. Where that cannot be, and for batches of
            another shape, such as the last of an epoch, every kernel is launched by the host, as ever.
    """

    def __init__(self, cuda_graph: bool = True) -> None:
        self.cuda_graph = cuda_graph
        self.step: ReplayedStep | None = None

    def __call__(self, engine: SupervisedTrainer, batch: Any) -> list[dict[str, Any]]:
        image, label = engine.prepare_batch(batch, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        image, label = tree_map_only(MetaTensor, MetaTensor.as_tensor, (image, label))
        engine.network.train()
        engine.state.output = {}  # what the last step left must not hold its memory
        pred, loss = self.step_of(engine)(image, label)
        engine.state.output = {Keys.IMAGE: image, Keys.LABEL: label, Keys.PRED: pred, Keys.LOSS: loss}
        for event in ("FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED"):
            engine.fire_event(IterationEvents[event])
        if engine.amp:
            engine.scaler.step(engine.optimizer)
            engine.scaler.update()
        else:
            engine.optimizer.step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return [engine.state.output]  # as handlers of MONAI expect to find the loss

    def step_of(self, engine: SupervisedTrainer) -> "ReplayedStep":
        """The step of this trainer, the same each time."""
        if self.step is None:
            alone = not isinstance(engine.network, DistributedDataParallel)
            enabled = self.cuda_graph and alone and torch.device(engine.state.device).type == "cuda"
            self.step = ReplayedStep(gradients_of(engine), list(engine.network.parameters()), enabled)
        return self.step


def gradients_of(engine: SupervisedTrainer) -> Callable[[Any, Any], tuple[Any, Tensor]]:
    """A trainer's forward and backward pass: image and label to prediction and loss, without their graph."""

    def compute(image: Any, label: Any) -> tuple[Any, Tensor]:
        with torch.autocast("cuda", enabled=bool(engine.amp), **engine.amp_kwargs):
            pred = engine.inferer(image, engine.network)
            loss = engine.loss_function(pred, label).mean()
        (engine.scaler.scale(loss) if engine.amp else loss).backward()
        return tree_map_only(Tensor, Tensor.detach, (pred, loss))

    return compute


class ReplayedStep:
    """A function of tensors that fills gradients: run as it is a few times, then recorded, and from there on replayed.

    Only input of the first shape that comes often enough in a row is replayed. A function that waits for the GPU cannot
    be recorded; a warning says so, and it runs as it is.

    Args:
        function: of tensors, and what holds them, to the same; the same operations each time.
        parameters: whose gradients it fills.
        enabled: if not, it is only run.
    """

    def __init__(self, function: Callable[..., Any], parameters: Sequence[Parameter], enabled: bool = True) -> None:
        self.function, self.parameters, self.enabled = function, parameters, enabled
        self.recording: Recording | None = None
        self.kind: list[Any] = []
        self.seen = 0

    def __call__(self, *inputs: Any) -> Any:
        """What the function gives; of a recording, tensors that the next call overwrites."""
        kind = [(tensor.shape, tensor.dtype) for tensor in tree_leaves(inputs)] if self.enabled else []
        if self.recording is not None and kind == self.kind:
            return self.recording.replay(inputs)
        for parameter in self.parameters:
            parameter.grad = None
        if not self.enabled or self.recording is not None:
            return self.function(*inputs)
        self.kind, self.seen = kind, self.seen + 1 if kind == self.kind else 1
        if self.seen < PLAIN_STEPS:
            return self.function(*inputs)
        return self.watched(inputs) if self.seen == PLAIN_STEPS else self.recorded(inputs)

    def watched(self, inputs: Sequence[Any]) -> Any:
        """Run the function, and see whether it can be recorded."""
        result, waits = run_and_watch(self.function, inputs)
        if waits:
            self.give_up(f"it waits for the GPU: {waits[0]}")
        return result

    def recorded(self, inputs: Sequence[Any]) -> Any:
        """Record the function and replay it; run it as it is if that fails."""
        try:
            self.recording = Recording(self.function, inputs, self.parameters)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.give_up(str(error).splitlines()[0])
            return self(*inputs)
        return self.recording.replay(inputs)

    def give_up(self, reason: str) -> None:
        self.enabled = False
        logger.warning("the step is not replayed as a CUDA graph, and takes longer; %s", reason)


class Recording:
    """One run of a function as a CUDA graph, with tensors of its own for what goes in and comes out.

    Args:
        function, parameters: as in `ReplayedStep`.
        inputs: of the kind that it is to be replayed with.
    """

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Any], parameters: Sequence[Parameter]) -> None:
        self.parameters = parameters
        self.inputs = tree_map_only(Tensor, torch.clone, tuple(inputs))
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # a data loader's thread goes on
            self.outputs = function(*self.inputs)
        self.gradients = [parameter.grad for parameter in parameters]

    def replay(self, inputs: Sequence[Any]) -> Any:
        for own, given in zip(tree_leaves(self.inputs), tree_leaves(inputs), strict=True):
            own.copy_(given)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.outputs


def run_and_watch(function: Callable[..., Any], inputs: Sequence[Any]) -> tuple[Any, list[str]]:
    """The result of a function, and torch's words on each place where it waited for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = function(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    messages = [str(warning.message) for warning in caught]
    return result, [message for message in messages if "called a synchronizing" in message]
