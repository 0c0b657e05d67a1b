"""Optimal Brain Quantization (Frantar & Alistarh 2022), the greedy predecessor that GPTQ speeds up."""

from __future__ import annotations

import torch
from torch import Tensor

from secondlook.compression.gptq.grid import Grid, QuantizedWeight, check_layer, fit_grid, working_copy


@torch.no_grad()
def obq_quantize(
    weight: Tensor,
    hessian: Tensor,
    bits: int = 4,
    *,
    percdamp: float = 0.01,
    symmetric: bool = False,
    mse: bool = False,
    outliers_first: bool = True,
    cache_bytes: int | None = None,
) -> QuantizedWeight:
    """Quantize every row of ``weight [rows, columns]`` in its own greedy order, in float64.

    Of the weights left, the next one is the cheapest, ``argmin_p (q(w_p) - w_p)^2 / [F^-1]_pp``; the others
    move by ``-(w_p - q(w_p)) / [F^-1]_pp * F^-1[:, p]``, and ``p`` leaves ``F^-1`` by one step of Gaussian
    elimination. Each row needs an inverse of its own, O(rows * columns^3) in all: for small layers.

    Args:
        hessian: ``2 E[x x^T]`` of the inputs, ``[columns, columns]``, dampened as in `gptq_quantize`.
        outliers_first: take weights that lie more than half a step off the grid at once, worst first, before
            nothing is left to absorb their error (the rule of the released code).
        cache_bytes: rows are handled in chunks whose inverses take about this much memory; None takes what suits
            the device: 2 MB, which stay in a processor's cache, or 1 GB, which keeps a GPU busy.

    The result's ``loss`` is ``tr((W - Q) H (W - Q)^T)`` with the dampened ``H``.
    """
    check_layer(weight, hessian, bits, None)
    dtype = working_copy(weight[:0]).dtype
    W = weight.detach().double().clone()
    hessian = hessian.to(W.device, torch.float64, copy=True)
    grid = fit_grid(W, bits, symmetric=symmetric, mse=mse)
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    W[:, dead] = 0
    hessian.diagonal().add_(percdamp * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))

    if cache_bytes is None:
        cache_bytes = 2**21 if W.device.type == "cpu" else 2**30
    codes, loss = torch.empty_like(W), 0.0
    for chunk in torch.arange(len(W), device=W.device).split(max(1, cache_bytes // (8 * len(hessian) ** 2))):
        rows = Grid(grid.scale[chunk], grid.zero[chunk], bits)
        codes[chunk], part = _sweep(W[chunk], inverse, rows, outliers_first)
        loss += part
    return QuantizedWeight(
        integers=codes.to(torch.int16),
        scale=grid.scale.to(dtype),
        zero=grid.zero.to(dtype),
        group_of=torch.zeros(W.shape[1], dtype=torch.long, device=W.device),
        bits=bits,
        loss=loss,
    )


def _sweep(w: Tensor, inverse: Tensor, grid: Grid, outliers_first: bool) -> tuple[Tensor, float]:
    """Codes ``[rows, columns]`` and summed loss of some rows, each with its own copy of the inverse."""
    rows, columns = w.shape
    F = inverse.expand(rows, -1, -1).clone()
    codes = torch.zeros_like(w)
    done = torch.zeros_like(w, dtype=torch.bool)
    row, loss = torch.arange(rows, device=w.device), torch.zeros((), dtype=w.dtype, device=w.device)
    for _ in range(columns):
        code = grid.encode(w)
        error = w - grid.decode(code)
        diagonal = F.diagonal(dim1=1, dim2=2)
        p = (error.square() / diagonal).masked_fill_(done, torch.inf).argmin(1)
        if outliers_first:
            far, worst = error.abs().masked_fill_(done, 0.0).max(1)
            p = torch.where(far > grid.scale[:, 0] / 2 * (1 + 1e-9), worst, p)
        e, d, column = error[row, p], diagonal[row, p], F[row, :, p]
        codes[row, p] = code[row, p]
        done[row, p] = True
        loss += (e.square() / d).sum()
        w = w - (e / d)[:, None] * column
        F.baddbmm_(column[:, :, None], (column / d[:, None])[:, None, :], alpha=-1)
        F[row, p, p] = 1.0  # keeps the finished diagonal harmless; its row and column are zero
    return codes, loss.item()
