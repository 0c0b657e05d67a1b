r"""FD-Net: a stencil, learned, applied several times between two recorded frames.

    u <- u + sum_f a_f s(w_f * u),  M times

with one linear filter (no a, no s) in the plain form. An explicit scheme for the heat equation is such a network, with
w = (r, -2r, r) and r = k dt / dx^2.
"""

from __future__ import annotations

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
            change = torch.einsum("f,bf...->b...", self.weights, self.nonlinearity(out))
        return u + (change if self.bc == "periodic" else F.pad(change, [1, 1] * self.dim))

    def forward(self, u: Tensor) -> Tensor:
        """The next frame."""
        for _ in range(self.substeps):
            u = self.block(u)
        return u

    def _widened(self, u: Tensor) -> Tensor:
        """The field with as many points more at each end that the filters give all points (or the inner ones) back."""
        for axis in range(-self.dim, 0):
            n, reach = u.shape[axis], self.width // 2
            if self.bc == "periodic":
                parts = [u.narrow(axis, n - reach, reach), u, u.narrow(axis, 0, reach)]
            elif reach == 1:
                continue
            else:  # odd continuation, 2 u(0) - u(x), by one point less: the outermost points are not updated
                first, last = u.narrow(axis, 0, 1), u.narrow(axis, n - 1, 1)
                left = 2 * first - u.narrow(axis, 1, reach - 1).flip(axis)
                parts = [left, u, 2 * last - u.narrow(axis, n - reach, reach - 1).flip(axis)]
            u = torch.cat(parts, axis)
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
