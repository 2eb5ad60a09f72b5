"""Random numbers for the rows of a batch: those of the whole batch are drawn, and a process keeps its own.

Of whole volumes only seeds are drawn for all, a seed for each row; a process makes no other's noise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Random numbers, a row for each brain, from one generator.

    Args:
        generator: its device is that of the numbers.
        rows: of all processes together.
        own: picks the rows of this process.
    """

    generator: torch.Generator
    rows: int
    own: Callable[[Tensor], Tensor] = lambda rows: rows

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Between two bounds, `(B, *shape)`."""
        values = torch.rand(self.rows, *shape, generator=self.generator, device=self.generator.device)
        return self.own(low + (high - low) * values)

    def normal(self, *shape: int) -> Tensor:
        """Of unit variance, `(B, *shape)`."""
        return self.own(torch.randn(self.rows, *shape, generator=self.generator, device=self.generator.device))

    def noise(self, *shape: int) -> Tensor:
        """Of unit variance, `(B, *shape)`, each row from a seed of its own: for volumes."""
        device = self.generator.device
        seeds = self.own(torch.randint(2**62, (self.rows,), generator=self.generator, device=device))
        out = torch.empty(len(seeds), *shape, device=device)
        for row, seed in zip(out, seeds.tolist(), strict=True):
            row.normal_(generator=torch.Generator(device).manual_seed(seed))
        return out

    def chance(self, probability: float, *shape: int) -> Tensor:
        """True with a probability, `(B, *shape)`."""
        return self.uniform(0, 1, *shape) < probability
