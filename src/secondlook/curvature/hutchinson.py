r"""Trace and diagonal of a matrix from its products with random vectors.

For probes with $E[z z^T] = I$: $E[z^T A z] = \mathrm{tr} A$ (Hutchinson 1990) and $E[z \odot A z] = \mathrm{diag} A$
(Bekas, Kokiopoulou, Saad 2007). One Rademacher probe has variance $2 \sum_{i \ne j} A_{ij}^2$ for the trace and
$\sum_{j \ne i} A_{ij}^2$ for entry $i$ of the diagonal; a Gaussian one $2 \|A\|_F^2$ and that plus $2 A_{ii}^2$.
"""

from typing import Literal

import torch
from torch import Tensor

from secondlook.curvature.estimate import Estimate
from secondlook.curvature.linear import SymmetricOperator, check_square

__all__ = ["diagonal", "probe_vectors", "trace"]

Distribution = Literal["rademacher", "gaussian"]


def probe_vectors(
    size: int,
    count: int,
    *,
    generator: torch.Generator,
    distribution: Distribution = "rademacher",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """`[size, count]` independent probes with zero mean and unit covariance, drawn on the generator's device."""
    if size < 1 or count < 1:
        raise ValueError(f"probes need a positive size and count, got {size} and {count}")
    where = generator.device
    if distribution == "rademacher":
        bits = torch.randint(0, 2, (count, size), generator=generator, device=where, dtype=torch.int8)
        return bits.to(device, dtype).mul_(2).sub_(1).T
    if distribution == "gaussian":
        return torch.randn(count, size, generator=generator, device=where, dtype=dtype).to(device).T
    raise ValueError(f"distribution must be 'rademacher' or 'gaussian', got {distribution!r}")


def trace(
    A: Tensor | SymmetricOperator,
    probes: Tensor | int = 30,
    *,
    generator: torch.Generator | None = None,
    distribution: Distribution = "rademacher",
) -> Estimate:
    """Trace of `A` from `probes`, a number of them to draw or the vectors themselves, `[n, k]`."""
    z, products = _products(A, probes, generator, distribution)
    return Estimate.of((z * products).sum(0))


def diagonal(
    A: Tensor | SymmetricOperator,
    probes: Tensor | int = 30,
    *,
    generator: torch.Generator | None = None,
    distribution: Distribution = "rademacher",
) -> Estimate:
    """Diagonal of `A`, `[n]`, with a standard error for every entry; `probes` as in `trace`."""
    z, products = _products(A, probes, generator, distribution)
    return Estimate.of((z * products).T)


def as_probes(
    A: Tensor | SymmetricOperator, probes: Tensor | int, generator: torch.Generator | None, distribution: Distribution
) -> Tensor:
    """The probes handed in, checked, or as many as asked for, drawn."""
    n = check_square(A)
    if isinstance(probes, Tensor):
        if probes.ndim != 2 or probes.shape[0] != n or probes.shape[1] < 1:
            raise ValueError(f"probes must have shape [{n}, k], got {tuple(probes.shape)}")
        return probes
    if generator is None:
        raise ValueError("drawing probes needs a generator: pass generator=torch.Generator().manual_seed(...)")
    return probe_vectors(n, probes, generator=generator, distribution=distribution, dtype=A.dtype, device=A.device)


def _products(
    A: Tensor | SymmetricOperator, probes: Tensor | int, generator: torch.Generator | None, distribution: Distribution
) -> tuple[Tensor, Tensor]:
    z = as_probes(A, probes, generator, distribution)
    return z, A @ z
