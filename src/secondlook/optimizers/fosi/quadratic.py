"""The paper's quadratics, and a run of any arm on one of them, in float64 with exact gradients."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from secondlook.optimizers.fosi.method import FOSI

K = 10  # largest eigenpairs
PRODUCTS = 4 * K  # what finding them costs
BASES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "gd": torch.optim.SGD,
    "heavy-ball": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
}


@dataclass(frozen=True)
class Quadratic:
    """f(x) = x' H x / 2 with H = frame diag(spectrum) frame', the frame's columns [n, r] orthonormal."""

    frame: Tensor
    spectrum: Tensor

    def loss(self, x: Tensor) -> Tensor:
        return 0.5 * (self.spectrum * (x @ self.frame) ** 2).sum()

    def start(self) -> Tensor:
        """The paper's x0: 0.5 along every eigenvector, 1 along the second, as its scripts number them."""
        along = torch.full_like(self.spectrum, 0.5)
        along[1] = 1.0
        return self.frame @ along

    def rates(self) -> dict[str, float]:
        """The paper's learning rates."""
        low, high = float(self.spectrum.min()), float(self.spectrum.max())
        return {"gd": 2 / (high + low), "heavy-ball": 2 / (high**0.5 + low**0.5) ** 2, "adam": 0.05}


def orthonormal(n: int, columns: int, generator: torch.Generator) -> Tensor:
    """Uniformly random orthonormal columns, `[n, columns]`."""
    q, r = torch.linalg.qr(torch.randn(n, columns, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def geometric(n: int, top: float, generator: torch.Generator) -> Quadratic:
    """Eigenvalues top, 1, 1/1.5, 1/1.5^2, ... in a random basis. Those below 1e-17 only add rounding: left out."""
    spectrum = torch.tensor([top, *(1.5**-i for i in range(min(n, 97) - 1))], dtype=torch.float64)
    return Quadratic(orthonormal(n, len(spectrum), generator), spectrum)


def part_rotated(n: int, growth: float, block: int, generator: torch.Generator) -> Quadratic:
    """Eigenvalues 1e-3 growth^i, the `block` most extreme of them (half from either end) mixed by a random rotation."""
    spectrum = 1e-3 * growth ** torch.arange(n, dtype=torch.float64)
    half, frame = block // 2, torch.eye(n, dtype=torch.float64)
    extreme = torch.cat([torch.arange(half), torch.arange(n - half, n)])
    frame[extreme[:, None], extreme] = orthonormal(block, block, generator)
    return Quadratic(frame, spectrum)


def minimise(
    arm: str, f: Quadratic, lr: float, steps: int, seed: int, curvature: Quadratic | None = None
) -> list[float]:
    """The values f(x_0), ..., f(x_steps) of a base, or of FOSI on it with one spectrum from x0 and no clipping.

    `curvature` is the function whose eigenpairs FOSI uses; f itself where it is None. From the first value that is not
    finite on, all are infinity.
    """
    x = f.start().requires_grad_()
    name = arm.removeprefix("fosi-")
    optimizer = BASES[name]([x], lr)
    if arm != name:
        options = {"alpha": 0.1 if name == "heavy-ball" else 1.0, "lr_clip": 1.0 if name == "adam" else math.inf}
        generator = torch.Generator().manual_seed(seed)
        hessian_of = partial((curvature or f).loss, x)
        optimizer = FOSI(optimizer, hessian_of, K, every=steps + 1, warmup=1, generator=generator, **options)
    values = []
    for _ in range(steps + 1):
        along = x.detach() @ f.frame
        values.append(0.5 * float((f.spectrum * along**2).sum()))
        if not math.isfinite(values[-1]):
            return [*values[:-1], *[math.inf] * (steps + 2 - len(values))]
        x.grad = f.frame @ (f.spectrum * along)
        optimizer.step()
    return values
