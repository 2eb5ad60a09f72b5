"""Convolution blocks in channels-last memory, which spares a CPU a copy of every output, with MONAI's numbers.

Shapes: B volumes `(B, C, X, Y, Z)`; in channels-last memory the C values of a voxel lie together.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ON_GPU = False
"""Whether GPUs take this layout, too: not tried there yet."""


def takes_channels_last(volumes: Tensor) -> bool:
    """Whether the machine runs better so, and does not write the network down: an export is for any machine."""
    exporting = torch.jit.is_tracing() or torch.compiler.is_exporting()
    return (volumes.device.type == "cpu" or ON_GPU) and not exporting


def channels_last(volumes: Tensor) -> Tensor:
    """The volumes in channels-last memory, on a CPU; also those of one channel, which torch does not tell apart."""
    if not takes_channels_last(volumes):
        return volumes
    moved = volumes.movedim(1, -1)
    return moved.reshape(-1).view(moved.shape).movedim(-1, 1)


class InstanceNorm(nn.InstanceNorm3d):
    """Torch's instance norm, without parameters; on a CPU a batch norm of each volume, in channels-last memory.

    Every convolution of a block is followed by it, so that what torch does in another layout, as it does with a single
    small volume, is put right here.
    """

    def forward(self, volumes: Tensor) -> Tensor:
        if not takes_channels_last(volumes):
            return super().forward(volumes)
        volumes = channels_last(volumes)
        normed = [F.batch_norm(one, None, None, training=True, eps=self.eps) for one in volumes.split(1)]
        return torch.cat(normed) if len(normed) > 1 else normed[0]


class PointwiseConv(nn.Conv3d):
    """Torch's convolution of kernel 1; on a CPU as a product of matrices, in channels-last memory."""

    def forward(self, volumes: Tensor) -> Tensor:
        if not takes_channels_last(volumes):
            return super().forward(volumes)
        return F.linear(volumes.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


def use_channels_last(module: nn.Module) -> None:
    """Make the norms and pointwise convolutions in a module those above, in place; parameters and names stay."""
    for part in module.modules():
        if type(part) is nn.InstanceNorm3d and not part.affine and not part.track_running_stats:
            part.__class__ = InstanceNorm
        elif type(part) is nn.Conv3d and is_pointwise(part):
            part.__class__ = PointwiseConv


def is_pointwise(conv: nn.Conv3d) -> bool:
    """Whether a convolution is a product of each voxel's channels with a matrix."""
    return conv.kernel_size == conv.stride == (1, 1, 1) and conv.padding == (0, 0, 0) and conv.groups == 1
