"""A random estimate together with what it knows about its own error."""

from dataclasses import dataclass

import torch
from scipy.special import stdtrit  # Student's t; scipy.stats would cost every job a second to load
from torch import Tensor

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """The mean of independent, unbiased samples, with the standard error of that mean.

    `value` and `stderr` have the shape of one sample; `stderr` is NaN when there is only one. Samples that are only
    exchangeable hide a part of the error; estimators that draw such widen `stderr` by what is known of that part.
    """

    value: Tensor
    stderr: Tensor
    samples: Tensor

    @classmethod
    def of(cls, samples: Tensor, widened: float = 1.0) -> "Estimate":
        """From samples along the first axis, their standard error multiplied by `widened`."""
        if len(samples) < 1:
            raise ValueError("an estimate needs at least one sample")
        error = samples.std(0, correction=1) / len(samples) ** 0.5 if len(samples) > 1 else samples[0] * torch.nan
        error = error if widened == 1 else widened * error
        return cls(samples.mean(0), error, samples)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the Student t interval that covers the true value with probability `level`.

        Exact for normal samples, else as good as the central limit theorem for this many of them.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        if len(self.samples) < 2:
            raise ValueError("one sample knows nothing about its error: draw two or more")
        half = stdtrit(len(self.samples) - 1, (1 + level) / 2) * self.stderr
        return self.value - half, self.value + half

    def __float__(self) -> float:
        return float(self.value)
