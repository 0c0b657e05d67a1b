r"""The top right singular vector of a matrix whose rows stream by once, in random order (arXiv 2412.11963).

A stretch of a random stream is a uniform sample of the rows, so B_j'B_j is about (n_j / n) A'A, and one stretch
pays for one step of the power method:

    z <- normalise( (n / n_j) sum_{light a in B_j} a (a'z) + sum_{stored heavy x} x (x'z) )

A few rows of large norm would make the sample a bad one. They are kept exactly and enter every later step in full.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["StreamingTopEigenvector", "oja_top_eigenvector"]

RENORMALISE = 8  # Oja updates between two normalisations, few enough not to overflow; only the direction matters


class StreamingTopEigenvector:
    """Block power method with a store of heavy rows, in one pass.

    A row x is heavy at time k if |x|^2 >= c^2 F^2 / (d log(d)^2), with F^2 the squared Frobenius norm expected of the
    whole stream judging by the *other* rows so far, (n / k) (S_k - |x|^2). Written for the share of the mass S_k:

        |x|^2 / S_k >= 1 / (1 + (k / n) d log(d)^2 / c^2)

    Nothing of the future is used but the number of rows. A row that stops being heavy is dropped, and counts as light
    if its block is still open. The paper leaves the power of log d open; with the square, sampling the light rows
    disturbs a block by no more than the top eigenvalue, which is at least F^2 / d.

    Args:
        dim: length d of a row, at least 2.
        blocks: number p of consecutive stretches, O(log d).
        n_rows: rows n of the whole stream.
        heavy_const: c; infinity stores nothing.
        seed: of the Gaussian start, where `start` [d] is not given.

    Example:
        >>> rows = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).repeat(50, 1)
        >>> top = StreamingTopEigenvector(dim=2, blocks=4, n_rows=100).partial_fit(rows)
        >>> [round(abs(x), 2) for x in top.vector_.tolist()]
        [1.0, 0.0]
    """

    def __init__(
        self,
        dim: int,
        blocks: int,
        n_rows: int,
        heavy_const: float = 1.0,
        seed: int = 0,
        *,
        start: Tensor | None = None,
    ) -> None:
        if dim < 2:
            raise ValueError(f"dim must be at least 2, got {dim}")
        if not 1 <= blocks <= n_rows:
            raise ValueError(f"blocks must lie between 1 and n_rows = {n_rows}, got {blocks}")
        if not heavy_const > 0:
            raise ValueError(f"heavy_const must be positive (infinity stores nothing), got {heavy_const}")
        self._z = _direction(start, dim, seed)
        self.n_rows = n_rows
        self.seen = 0
        self.peak_rows = 0  # the most rows ever stored at once
        self._ends = [(j + 1) * n_rows // blocks for j in range(blocks)]
        self._block = 0
        self._spread = dim * math.log(dim) ** 2 / heavy_const**2
        self._mass = self._z.new_zeros(())
        self._light = torch.zeros_like(self._z)  # sum of a (a'z) over the open block
        self._store = self._z.new_empty(0, dim)
        self._born = torch.empty(0, dtype=torch.long, device=self._z.device)  # the block that each stored row came in

    @property
    def vector_(self) -> Tensor:
        """Unit vector [d] after the last completed block; its sign is arbitrary."""
        return self._z

    def partial_fit(self, rows: Tensor) -> StreamingTopEigenvector:
        """Read the next rows [m, d]. How a stream is cut into calls makes no difference."""
        rows = torch.as_tensor(rows).to(self._z)
        if rows.ndim != 2 or rows.shape[1] != len(self._z):
            raise ValueError(f"rows must be [m, {len(self._z)}], got {list(rows.shape)}")
        if self.seen + len(rows) > self.n_rows:
            raise ValueError(f"{self.seen + len(rows)} rows came, but n_rows promised {self.n_rows}")
        if not rows.isfinite().all():
            raise ValueError("rows must be finite")
        while len(rows):
            piece, rows = rows.tensor_split([self._ends[self._block] - self.seen])
            self._read(piece)
            if self.seen == self._ends[self._block]:
                self._close()
        return self

    def _read(self, rows: Tensor) -> None:
        """Take up rows of the open block, as if one by one."""
        squares = rows.square().sum(1)
        index = torch.arange(len(rows), device=rows.device)
        mass = self._mass + squares.cumsum(0)
        bar = mass / (1 + (self.seen + 1 + index) / self.n_rows * self._spread)

        # Who is stored when: from its arrival on, until a bar is higher than its norm.
        new = ((squares >= bar) & (squares > 0)).nonzero().squeeze(1)
        store = torch.cat([self._store, rows[new]])
        born = torch.cat([self._born, torch.full_like(new, self._block)])
        arrival = torch.cat([torch.zeros_like(self._born), new]).unsqueeze(1)
        here = index >= arrival
        norms = torch.cat([self._store.square().sum(1), squares[new]]).unsqueeze(1)
        stored = here & (norms >= bar.where(here, 0).cummax(1).values)
        self.peak_rows = max(self.peak_rows, int(stored.sum(0).max()))
        keep = stored[:, -1]

        light = torch.ones_like(squares, dtype=torch.bool)
        light[new] = False
        for part in (rows[light], store[~keep & (born == self._block)]):
            self._light += part.mT @ (part @ self._z)
        self._store, self._born = store[keep], born[keep]
        self._mass, self.seen = mass[-1], self.seen + len(rows)

    def _close(self) -> None:
        """One step of the power method with what the block has gathered."""
        first = self._ends[self._block - 1] if self._block else 0
        z = self.n_rows / (self.seen - first) * self._light + self._store.mT @ (self._store @ self._z)
        norm = z.norm()
        if norm > 0:  # a block of zeros says nothing
            self._z = z / norm
        self._light = torch.zeros_like(z)
        self._block += 1


def oja_top_eigenvector(rows: Tensor, lr: float | Tensor, seed: int = 0, *, start: Tensor | None = None) -> Tensor:
    """Oja's rule with a fixed rate, z <- normalise(z + lr a (a'z)), over one stream or several at a time.

    Args:
        rows: [n, d], or [n, B, d] for B streams.
        lr: one rate, or [r] rates, each of which gets a run of its own.
        seed: of the Gaussian start, where `start` [d] (or [B, d]) is not given.

    Returns:
        Unit vectors [d], [r, d], [B, d] or [B, r, d].
    """
    rates = torch.as_tensor(lr, dtype=rows.dtype, device=rows.device)
    if not (rates > 0).all():
        raise ValueError(f"lr must be positive, got {lr}")
    if rows.ndim not in (2, 3) or rates.ndim > 1:
        raise ValueError(f"rows must be [n, d] or [n, B, d] and lr at most [r], got {list(rows.shape)}, {lr}")
    one_stream, one_rate = rows.ndim == 2, rates.ndim == 0
    rows = rows.unsqueeze(1) if one_stream else rows
    _, streams, dim = rows.shape
    start = _direction(start, dim, seed).to(rows)
    rates = rates.reshape(-1, 1)
    z = start.reshape(-1, 1, dim).expand(streams, len(rates), dim).clone()
    for k, a in enumerate(rows.unsqueeze(2)):  # [B, 1, d]
        z.baddbmm_(rates * torch.bmm(z, a.mT), a)
        if k % RENORMALISE == 0:
            z /= z.norm(dim=-1, keepdim=True)
    z /= z.norm(dim=-1, keepdim=True)
    z = z.squeeze(1) if one_rate else z
    return z.squeeze(0) if one_stream else z


def _direction(start: Tensor | None, dim: int, seed: int) -> Tensor:
    """A unit vector: the given start, or a Gaussian one."""
    if start is None:
        start = torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if start.shape[-1] != dim or not (start.norm(dim=-1) > 0).all():
        raise ValueError(f"start must be nonzero and of length {dim}, got shape {list(start.shape)}")
    return start / start.norm(dim=-1, keepdim=True)
