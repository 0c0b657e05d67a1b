"""Fully connected networks trained in one precision throughout, on tasks whose least squared error is zero.

After the paper on single and double precision (KDIR 2022, doi 10.5220/0011577900003335). Conjugate gradients are in
`secondlook.optimizers.nonlinear_cg`; the scaling of the tasks is a reconstruction, for the paper was not at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from secondlook.optimizers.nonlinear_cg import FunctionAndGradient, Trace

PRE_ACTIVATION = {"moderate": 0.5, "strong": 3.0}
"""Standard deviation of the teacher's pre-activations: nearly linear units, and units that saturate."""


class Network:
    """tanh layers and a linear one on all rows of `x`, its weights a flat vector; squared error and gradient by hand.

    A layer is a matrix [inputs + 1, outputs], the bias its last row: the weight of a unit that is always 1. All work
    is done in the precision of `x`. Leading axes of `x` and the weights are networks side by side.

    Args:
        sizes: inputs, hidden widths, outputs.
        x: inputs, [..., K, sizes[0]].
        linear: leave the tanh out.
    """

    def __init__(self, sizes: tuple[int, ...], x: Tensor, linear: bool = False):
        self.shapes = [(i + 1, o) for i, o in pairwise(sizes)]
        self.counts = [i * o for i, o in self.shapes]
        self.linear = linear
        self.inputs = [torch.cat([x, torch.ones_like(x[..., :1])], -1)]  # of each layer, rewritten at each evaluation
        self.inputs += [x.new_ones(*x.shape[:-1], width + 1) for width in sizes[1:-1]]
        self.units = [h[..., :-1] for h in self.inputs]  # views without the ones
        self.transposed = [h.mT for h in self.inputs]

    def layers(self, w: Tensor) -> list[Tensor]:
        """The matrices [..., inputs + 1, outputs] as views of `w` [..., P]."""
        parts = zip(w.split_with_sizes(self.counts, -1), self.shapes, strict=True)
        return [part.view(*w.shape[:-1], *shape) for part, shape in parts]

    def __call__(self, w: Tensor) -> Tensor:
        """Outputs [..., K, sizes[-1]] with weights `w` [..., P]."""
        return self._forward(self.layers(w))

    def _forward(self, layers: list[Tensor]) -> Tensor:
        for h, after, matrix in zip(self.inputs, self.units[1:], layers, strict=False):
            z = h @ matrix
            after.copy_(z if self.linear else z.tanh_())
        return self.inputs[-1] @ layers[-1]

    def squared_error(self, targets: Tensor) -> FunctionAndGradient:
        """Mean squared error [...] to `targets` [..., K, outputs] and its gradient [..., P], as a function of `w`."""
        share = 2 / (targets.shape[-1] * targets.shape[-2])

        def fun_and_grad(w: Tensor) -> tuple[Tensor, Tensor]:
            layers = self.layers(w)
            residual = self._forward(layers) - targets
            delta, grads = residual * share, []
            for depth in reversed(range(len(layers))):
                grads.append((self.transposed[depth] @ delta).flatten(-2))
                if depth:
                    delta = delta @ layers[depth][..., :-1, :].mT
                    if not self.linear:
                        h = self.units[depth]
                        delta = torch.addcmul(delta, delta * h, h, value=-1)
            return residual.square().mean((-2, -1)), torch.cat(grads[::-1], -1)

        return fun_and_grad


@dataclass(frozen=True)
class Task:
    """Inputs, and the weights of the network that made the targets: whoever finds them has error zero.

    Attributes:
        sizes: inputs, hidden widths, outputs of teacher and student.
        x: inputs [..., K, n_in], float32 numbers.
        teacher: weights [..., P], float32 numbers.
    """

    sizes: tuple[int, ...]
    x: Tensor
    teacher: Tensor

    @classmethod
    def stack(cls, tasks: Sequence[Task]) -> Task:
        """Tasks of the same sizes side by side."""
        return cls(tasks[0].sizes, torch.stack([t.x for t in tasks]), torch.stack([t.teacher for t in tasks]))

    def targets(self, dtype: torch.dtype) -> Tensor:
        """What the teacher, computing in `dtype`, says: [..., K, n_out]."""
        return Network(self.sizes, self.x.to(dtype))(self.teacher.to(dtype))

    def squared_error(self, dtype: torch.dtype) -> FunctionAndGradient:
        """Mean squared error to the teacher's `targets` and its gradient, all in `dtype`."""
        return Network(self.sizes, self.x.to(dtype)).squared_error(self.targets(dtype))

    def variance(self) -> Tensor:
        """Of the targets, mean over outputs: [...]."""
        return self.targets(torch.float64).var(-2, correction=0).mean(-1)

    def start(self, generator: torch.Generator) -> Tensor:
        """A student's weights [P]: Glorot's normal rule, biases 0."""
        parts = []
        for i, o in pairwise(self.sizes):
            matrix = torch.randn(i + 1, o, generator=generator) * math.sqrt(2 / (i + o))
            matrix[-1] = 0
            parts.append(matrix.flatten())
        return torch.cat(parts).to(self.x.device)


def width_for(parameters: int, layers: int, n_in: int, n_out: int) -> int:
    """The largest hidden width with at most so many parameters."""

    def count(width: int) -> int:
        return (n_in + 1) * width + (layers - 1) * (width + 1) * width + (width + 1) * n_out

    width = 1
    while count(width + 1) <= parameters:
        width += 1
    return width


def make_zero_mse_task(
    layers: int, width: int, n_in: int, n_out: int, n_samples: int, nonlinearity: str, seed: int, device: str = "cpu"
) -> Task:
    """A random teacher and its data: inputs from N(0, 1), targets of unit variance, so that the least error is 0.

    Every hidden layer is scaled until its pre-activations have the standard deviation that `nonlinearity` names
    ("moderate" 0.5, "strong" 3).

    Raises:
        ValueError: another `nonlinearity`, or not more target numbers than parameters.
    """
    if nonlinearity not in PRE_ACTIVATION:
        raise ValueError(f"nonlinearity must be one of {', '.join(PRE_ACTIVATION)}, got {nonlinearity!r}")
    sizes = (n_in, *[width] * layers, n_out)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_samples, n_in, generator=generator)
    h, parts = x.double().to(device), []
    for depth, (i, o) in enumerate(pairwise(sizes)):
        matrix = torch.randn(i + 1, o, generator=generator, dtype=torch.float64).to(device)
        z = h @ matrix[:-1] + matrix[-1]
        wanted = PRE_ACTIVATION[nonlinearity] / z.std() if depth < layers else z.var(0, correction=0).mean().rsqrt()
        matrix = (matrix * wanted).float()
        parts.append(matrix.flatten())
        h = (h @ matrix[:-1].double() + matrix[-1]).tanh_()
    teacher = torch.cat(parts)
    if n_samples * n_out <= len(teacher):
        raise ValueError(f"{n_samples} x {n_out} targets do not determine {len(teacher)} parameters; raise n_samples")
    return Task(sizes, x.to(device), teacher)


def rmsprop(
    fun_and_grad: FunctionAndGradient,
    w0: Tensor,
    dtype: torch.dtype,
    lr: float | Tensor,
    max_evals: int,
    decay: bool = False,
) -> Trace | list[Trace]:
    """Minimise by v <- 0.9 v + 0.1 g^2, w <- w - lr g / (sqrt(v) + 1e-7).

    Args:
        fun_and_grad: value and gradient at a point, computed in `dtype`.
        w0: start [P], or starts [B, P] of B runs side by side.
        dtype: precision of weights and averages.
        lr: step size, or those [B] of the runs.
        max_evals: steps.
        decay: let the step size fall along half a cosine.

    Returns:
        The trace of the lowest values, or a list of B. A run whose values are no numbers any more keeps its lowest.
    """
    w = w0.detach().to(dtype, copy=True)
    rate = torch.as_tensor(lr, dtype=dtype, device=w.device).unsqueeze(-1)
    average, lowest, at_lowest, values = torch.zeros_like(w), None, w.clone(), []
    for step in range(max_evals):
        value, gradient = fun_and_grad(w)
        value = value.nan_to_num(nan=math.inf)
        lower = torch.ones_like(value, dtype=torch.bool) if lowest is None else value < lowest
        lowest = value if lowest is None else torch.where(lower, value, lowest)
        at_lowest = torch.where(lower.unsqueeze(-1), w, at_lowest)
        values.append(lowest)
        average.mul_(0.9).addcmul_(gradient, gradient, value=0.1)
        factor = 0.5 + 0.5 * math.cos(math.pi * step / max_evals) if decay else 1.0
        w = w - rate * factor * gradient / average.sqrt().add_(1e-7)
    steps = list(range(1, max_evals + 1))
    table = torch.stack(values, -1)
    if w.ndim == 1:
        return Trace(at_lowest, steps, table.tolist())
    return [Trace(point, steps, row.tolist()) for point, row in zip(at_lowest, table, strict=True)]
