"""M-FAC: products with an inverse Fisher that is never formed (Frantar et al., 2021, arXiv:2107.03356).

Both classes apply the inverse of the damped empirical Fisher of m gradients, the rows g_i of G [m, d]:

    F = damp * I + (1/m) * sum_i g_i g_i^T.

They are exact and linear in d. `StaticIHVP` takes a fixed G and gives single entries of the inverse too, for pruning;
`DynamicIHVP` keeps a window of gradients in which one is replaced at a time, for optimization.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from secondlook.optimizers.base import check_count, check_range


class StaticIHVP:
    """The inverse Fisher of fixed gradients, by m rank-one updates (Sherman-Morrison), starting at I / damp:

        v_i = g_i / damp - sum_{j<i} v_j (v_j . g_i) / c_j,    c_i = m + g_i . v_i,
        F^-1 x = x / damp - sum_j v_j (v_j . x) / c_j.

    The setup takes O(d m^2), a product O(d m), an entry O(m). On CUDA keep float32 products at full precision
    (torch's default): TF32 rounds away what the damping adds.

    Args:
        G: gradients [m, d]; copied.
        damp: the added multiple of the identity, > 0.
        block_size: treat F as block-diagonal, with blocks of this many neighbouring coordinates (the last one may be
            shorter); None is the full matrix, 1 the diagonal Fisher.

    Raises:
        ValueError: G is no floating-point matrix, or an option is out of range.
    """

    def __init__(self, G: Tensor, damp: float = 1e-5, block_size: int | None = None) -> None:
        if G.ndim != 2 or 0 in G.shape or not G.is_floating_point():
            raise ValueError(f"G must be a floating-point matrix [m, d], got {G.dtype} of shape {tuple(G.shape)}")
        check_damp(damp)
        if block_size is not None:
            check_count("block_size", block_size)
        m, self.d = G.shape
        self.damp = damp
        self.block_size = min(block_size or self.d, self.d)
        rows = self._blocked(G.detach())
        self.V = rows / damp  # [m, blocks, block_size], from g_i / damp to v_i
        self.c = self.V.new_empty(self.V.shape[:2])
        self._diagonal: Tensor | None = None
        self._eliminate(rows, 0, m)

    def _eliminate(self, G: Tensor, first: int, last: int) -> None:
        """Finish rows first to last of V, from which all v_j with j < first have been taken already.

        By halves: most of the work is then in products of large matrices, not of one row with all before it.
        """
        if last - first == 1:
            self.c[first] = len(G) + (G[first] * self.V[first]).sum(-1)
            return
        middle = (first + last) // 2
        self._eliminate(G, first, middle)
        past = self.V[first:middle]
        # As many rows at a time as keep `shares` from outgrowing V where blocks are small.
        some = (x[middle:last].split(self.block_size) for x in (G, self.V))
        for g, v in zip(*some, strict=True):
            shares = torch.einsum("jbk,ibk->ijb", past, g) / self.c[first:middle]
            v -= torch.einsum("ijb,jbk->ibk", shares, past)
        self._eliminate(G, middle, last)

    def mul(self, x: Tensor) -> Tensor:
        """F^-1 x for x [d]."""
        check_vector(x, self.d)
        x = self._blocked(x)
        shares = torch.einsum("jbk,bk->jb", self.V, x) / self.c
        return self._flat(x / self.damp - torch.einsum("jb,jbk->bk", shares, self.V))

    def diag(self) -> Tensor:
        """The diagonal of F^-1, [d]; summed once, so that pruning to several sparsities asks for it freely."""
        if self._diagonal is None:
            diagonal = torch.full_like(self.V[0], 1 / self.damp)
            for v, c in zip(self.V, self.c, strict=True):
                diagonal.addcmul_(v, v / c[:, None], value=-1)
            self._diagonal = self._flat(diagonal)
        return self._diagonal.clone()

    def entry(self, i: int, j: int) -> Tensor:
        """(F^-1)_ij, a 0-d tensor; zero where i and j lie in different blocks."""
        if not (0 <= i < self.d and 0 <= j < self.d):
            raise ValueError(f"entries are numbered from 0 to {self.d - 1}, got ({i}, {j})")
        (block, a), (other, b) = divmod(i, self.block_size), divmod(j, self.block_size)
        if block != other:
            return self.V.new_zeros(())
        return (i == j) / self.damp - (self.V[:, block, a] * self.V[:, block, b] / self.c[:, block]).sum()

    def _blocked(self, x: Tensor) -> Tensor:
        """[..., d] as [..., blocks, block_size]; zeros fill up the last block and add nothing to inner products."""
        return F.pad(x, (0, -self.d % self.block_size)).unflatten(-1, (-1, self.block_size))

    def _flat(self, x: Tensor) -> Tensor:
        """[blocks, block_size] as [d]."""
        return x.flatten()[: self.d]


class DynamicIHVP:
    """The inverse Fisher of a sliding window of m gradients, zero at first.

    With K = G G^T, which one new gradient changes in one row and column,

        F^-1 x = (x - G^T (m damp I + K)^-1 G x) / damp.

    The paper's triangular matrix D is the factor U of m I + K / damp, its coefficients B are L^-1 / damp; as the matrix
    is symmetric and positive definite, one Cholesky factor holds both. Replacing a gradient takes O(d m), the
    factor O(m^3) when it is next needed, a product O(d m + m^2).

    Args:
        m: gradients in the window.
        d: entries of a gradient.
        damp: the added multiple of the identity, > 0.
        dtype: of the window. The m by m system is solved in float64: it costs little and is badly conditioned.
        device: of both.
    """

    def __init__(
        self,
        m: int,
        d: int,
        damp: float = 1e-5,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        check_count("m", m)
        check_count("d", d)
        check_damp(damp)
        self.damp = damp
        self.G = torch.zeros(m, d, dtype=dtype, device=device)
        self.dots = torch.zeros(m, m, dtype=dtype, device=device)
        self.slot = 0  # the oldest gradient, replaced next
        self._factor: Tensor | None = None

    def push(self, g: Tensor) -> None:
        """Replace the oldest gradient by g [d]."""
        check_vector(g, self.G.shape[1])
        self.G[self.slot] = g.detach()
        self.dots[self.slot] = self.dots[:, self.slot] = self.G @ self.G[self.slot]
        self.slot = (self.slot + 1) % len(self.G)
        self._factor = None

    def mul(self, x: Tensor) -> Tensor:
        """F^-1 x for x [d]."""
        check_vector(x, self.G.shape[1])
        return (x - self._combine(self.solve(self.G @ x))) / self.damp

    def mul_latest(self) -> Tensor:
        """F^-1 g for the gradient g pushed last, without the product G g and the cancellation in `mul`.

        g = G^T e makes F^-1 g = m G^T (m damp I + K)^-1 e.
        """
        e = self.G.new_zeros(len(self.G))
        e[self.slot - 1] = len(self.G)
        return self._combine(self.solve(e))

    def solve(self, y: Tensor) -> Tensor:
        """(m damp I + K)^-1 y for y [m], in float64."""
        if self._factor is None:
            m, dots = len(self.dots), self.dots.double()
            eye = torch.eye(m, dtype=dots.dtype, device=dots.device)
            damped = dots + m * self.damp * eye
            self._factor, failed = torch.linalg.cholesky_ex(damped)
            if failed.is_cuda or failed:  # to ask a GPU whether it failed would be to wait for it
                # Rounding in K can outweigh a small damping under large gradients; then damp by that rounding.
                rounding = 10 * torch.finfo(self.G.dtype).eps * dots.trace()
                rescue, _ = torch.linalg.cholesky_ex(damped + rounding * eye)
                self._factor = torch.where(failed > 0, rescue, self._factor)
        return torch.cholesky_solve(y.double()[:, None], self._factor)[:, 0]

    def widen(self, extra: int) -> None:
        """Append `extra` coordinates, zero in all gradients so far."""
        self.G = F.pad(self.G, (0, extra))

    def state_dict(self) -> dict[str, Tensor | int]:
        """Window, its dot products and the place of the oldest gradient."""
        return {"G": self.G, "dots": self.dots, "slot": self.slot}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Copy a state with the same m; d is taken from it."""
        if len(state["G"]) != len(self.G):
            raise ValueError(f"the saved window has {len(state['G'])} gradients, this one {len(self.G)}")
        self.G = state["G"].to(self.G, copy=True)
        self.dots = state["dots"].to(self.dots, copy=True)
        self.slot, self._factor = state["slot"], None

    def _combine(self, coefficients: Tensor) -> Tensor:
        return coefficients.to(self.G.dtype) @ self.G


def check_damp(damp: float) -> None:
    """Refuse what would make F singular."""
    check_range("damp", damp, low_open=True)


def check_vector(x: Tensor, d: int) -> None:
    """Refuse what has not d entries."""
    if x.shape != (d,):
        raise ValueError(f"the inverse Fisher has {d} columns: hand in a vector of shape ({d},), got {tuple(x.shape)}")
