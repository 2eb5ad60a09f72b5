"""`sa-swin weights convert`: published checkpoints under this project's names."""

import sys
from pathlib import Path


def convert(source: str, to: str, output: str, in_channels: int = 1) -> None:
    """Convert a checkpoint, and print what matched, what was reshaped and what was left.

    Understood are MONAI's Swin UNETR and its self-supervised encoders (model_swinvit.pt), Swin UNETR checkpoints in
    the style of BrainSegFounder, the reference repository's, our own, and safetensors of any of them.

    Args:
        source: .pt, .pth or .safetensors; only tensors are ever unpickled.
        to: encoder, pretrain, classify or segment.
        output: .pt or .safetensors; for training with --pretrained OUTPUT.
        in_channels: of the image, without its mirrored counterpart.
    """
    from custom.weights.conversion import convert_file  # the networks, which take seconds to import

    sys.stdout.write(convert_file(Path(source), to, Path(output), in_channels))
