"""What several processes must do together so that they train as one process with the whole batch would.

DistributedDataParallel averages the gradients of the processes. That is the gradient of the whole batch where a loss is
a mean over cases; where cases meet each other (NT-Xent, batch norm, class weights), they must be gathered first.
"""

import torch
import torch.distributed as dist
from monai.utils import convert_to_tensor
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather


def gather_batch(local: Tensor) -> Tensor:
    """The batches of all processes, one behind the other, with gradients: `(B, ...)` to `(processes x B, ...)`.

    Every process then computes the same loss. The gradients of all processes are summed on the way back, and
    DistributedDataParallel's mean makes them those of that one loss.

    Nothing is gathered without gradients: in an evaluation the processes may have different numbers of batches.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1 or not torch.is_grad_enabled():
        return local
    return torch.cat(all_gather(convert_to_tensor(local, track_meta=False)))


def mean_count(count: Tensor) -> Tensor:
    """The mean of a number over the processes: what a sum is divided by, so that all together they take the mean.

    As with `gather_batch`, nothing is exchanged without gradients.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1 or not torch.is_grad_enabled():
        return count
    total = count.detach().float().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def own_rows(rows: Tensor, block: int = 1) -> Tensor:
    """This process' rows of a whole batch's: a distributed sampler deals out cases in turns, `block` rows each."""
    if not dist.is_initialized():
        return rows
    return rows.unflatten(0, (-1, block))[dist.get_rank() :: dist.get_world_size()].flatten(0, 1)


def previous_rows(local: Tensor, block: int = 1) -> Tensor:
    """Of each row, the one before it in the whole batch, of which `own_rows` are here; of the first row, the last.

    Before the first row of a case comes the last one of the process before; each process hands those to the next.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return local.roll(1, dims=0)
    rank, world = dist.get_rank(), dist.get_world_size()
    cases = local.unflatten(0, (-1, block))
    last = cases[:, -1].contiguous()
    before = torch.empty_like(last)
    exchange = [dist.P2POp(dist.isend, last, (rank + 1) % world), dist.P2POp(dist.irecv, before, (rank - 1) % world)]
    for request in dist.batch_isend_irecv(exchange):
        request.wait()
    before = before.roll(1, dims=0) if rank == 0 else before
    return torch.cat([before[:, None], cases[:, :-1]], dim=1).flatten(0, 1)


class GlobalBatchLoss(nn.Module):
    """A loss of classes over the batches of all processes, where it is not the mean of the losses of cases.

    Args:
        loss: of logits and labels `(B,)`, for example cross-entropy with class weights. Of logits at several scales,
            `(B, K, S)`, it is the mean over the scales: each learns by itself.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        pred, target = gather_batch(pred), gather_batch(target)
        scales = pred.shape[2:]
        return self.loss(pred, target.view(-1, *[1] * len(scales)).expand(-1, *scales))
