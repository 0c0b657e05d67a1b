r"""FD-Net: a stencil, learned, applied several times between two recorded frames.

    u <- u + sum_f a_f s(w_f * u),  M times

with one linear filter (no a, no s) in the plain form. An explicit scheme for the heat equation is such a network, with
w = (r, -2r, r) and r = k dt / dx^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FDNet"]


class FDNet(nn.Module):
    """Maps fields [B, N] (`dim=1`) or [B, N, N] (`dim=2`) one frame ahead, by `substeps` equal sub-steps.

    Args:
        width: points that a filter spans in each direction, an odd number.
        bc: "dirichlet" leaves the outermost points as they are and continues the field oddly about them where a filter
            reaches further; "periodic" wraps around.
        n_filters, nonlinearity: several filters need a function that is applied to each before they are summed with
            weights. Filters then start at small random values from `generator`, the weights at zero; a single
            linear filter starts at zero. Either way the first map is the identity.
    """

    def __init__(
        self,
        width: int = 3,
        substeps: int = 1,
        dim: int = 1,
        bc: str = "dirichlet",
        n_filters: int = 1,
        nonlinearity: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if width < 3 or width % 2 == 0:
            raise ValueError(f"width must be an odd number of at least 3, got {width!r}")
        if substeps < 1 or n_filters < 1:
            raise ValueError(f"substeps and n_filters must be at least 1, got {substeps!r} and {n_filters!r}")
        if dim not in (1, 2):
            raise ValueError(f"dim must be 1 or 2, got {dim!r}")
        if bc not in ("dirichlet", "periodic"):
            raise ValueError(f"bc must be 'dirichlet' or 'periodic', got {bc!r}")
        if n_filters > 1 and nonlinearity is None:
            raise ValueError("several filters without a nonlinearity are one filter; set nonlinearity or n_filters=1")
        self.width, self.substeps, self.dim, self.bc, self.nonlinearity = width, substeps, dim, bc, nonlinearity
        filters = torch.zeros(n_filters, 1, *[width] * dim, dtype=dtype)
        if nonlinearity is not None:
            generator = generator or torch.Generator().manual_seed(0)
            filters.normal_(0, 1 / width**dim, generator=generator)
            self.weights = nn.Parameter(torch.zeros(n_filters, dtype=dtype))
        self.filters = nn.Parameter(filters)

    def block(self, u: Tensor) -> Tensor:
        """One sub-step."""
        out = (F.conv1d if self.dim == 1 else F.conv2d)(self._widened(u).unsqueeze(1), self.filters)
        if self.nonlinearity is None:
            change = out.squeeze(1)
        else:
            change = torch.tensordot(self.weights, self.nonlinearity(out), ([0], [1]))
        return u + (change if self.bc == "periodic" else F.pad(change, [1, 1] * self.dim))

    def forward(self, u: Tensor) -> Tensor:
        """The next frame.

        A linear network in one dimension is a matrix. Where points are few, its power takes less time than the
        sub-steps one by one; the limit was measured on a CPU.
        """
        points, m = u.shape[-1], self.substeps
        linear = self.dim == 1 and self.nonlinearity is None
        if linear and m > 1 and points**2 * math.log2(m) < 100 * m * len(u):
            return u @ torch.linalg.matrix_power(self.block(torch.eye(points, dtype=u.dtype, device=u.device)), m)
        for _ in range(self.substeps):
            u = self.block(u)
        return u

    def _widened(self, u: Tensor) -> Tensor:
        """The field with as many points more at each end that the filters give all points (or the inner ones) back."""
        reach = self.width // 2
        if self.bc == "periodic":
            for axis in range(-self.dim, 0):
                u = torch.cat([u.narrow(axis, -reach, reach), u, u.narrow(axis, 0, reach)], axis)
        elif reach > 1:  # odd continuation, 2 u(0) - u(x), by one point less: the outermost points are not updated
            for axis in range(self.dim):
                pad = [0, 0] * axis + [reach - 1] * 2 + [0, 0] * (self.dim - 1 - axis)
                u = 2 * F.pad(u, pad, mode="replicate") - F.pad(u, pad, mode="reflect")
        return u

    @torch.no_grad()
    def spectral_radius(self, points: int) -> float:
        """Largest absolute eigenvalue of a sub-step of a linear network in one dimension on `points` points.

        With fixed ends it is that of the inner points, whose ends are zero.
        """
        if self.nonlinearity is not None or self.dim != 1:
            raise ValueError("a spectral radius belongs to a linear network in one dimension")
        matrix = self.block(torch.eye(points, dtype=self.filters.dtype)).T
        inner = matrix if self.bc == "periodic" else matrix[1:-1, 1:-1]
        return float(torch.linalg.eigvals(inner).abs().max())
