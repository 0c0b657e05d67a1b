"""GPTQ (Frantar, Ashkboos, Hoefler, Alistarh; ICLR 2023).

Quantize a weight matrix column by column, and push the rounding error of each column onto the ones not yet
quantized, through the inverse covariance of the layer's inputs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from secondlook.compression.gptq.grid import Grid, QuantizedWeight, check_layer, fit_grid, working_copy


class GPTQCalibrator:
    """Running estimate of a linear layer's Hessian ``H = 2 E[x x^T]`` from the inputs it sees.

    The mean is over rows of input (tokens). The released code divides by the number of sequences instead,
    which only rescales ``H`` and changes no integer. Accumulates in ``dtype``.
    """

    def __init__(self, columns: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"):
        self._sum = torch.zeros(columns, columns, dtype=dtype, device=device)
        self.count = 0

    def add_batch(self, x: Tensor) -> None:
        """Add inputs of shape ``[..., columns]``."""
        if x.shape[-1] != len(self._sum):
            raise ValueError(f"inputs have {x.shape[-1]} features, the layer has {len(self._sum)} columns")
        x = x.detach().reshape(-1, x.shape[-1]).to(self._sum)
        self._sum.addmm_(x.T, x, alpha=2.0)
        self.count += len(x)

    @property
    def hessian(self) -> Tensor:
        """``[columns, columns]``."""
        if not self.count:
            raise ValueError("no inputs seen yet: call add_batch with calibration inputs first")
        return self._sum / self.count


def inverse_cholesky(hessian: Tensor, percdamp: float = 0.01) -> Tensor:
    """Upper triangular ``U`` with ``(H + percdamp * mean(diag H) * I)^-1 = U^T U`` (the method's step 3).

    Reversing both axes turns a lower factor into an upper one, so with ``R`` the upper factor of
    ``H = R R^T`` the answer is ``U = R^-1``: one factorisation and one triangular inverse, and ``H^-1`` is
    never formed. Always in float64: a float32 factor of an ill-conditioned ``H`` goes wrong without saying so.
    """
    reversed_ = hessian.double().flip(0, 1)
    reversed_.diagonal().add_(percdamp * reversed_.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(reversed_)
    if failed:
        raise ValueError(
            f"the dampened Hessian is not positive definite (percdamp={percdamp}); "
            "raise percdamp or calibrate on more inputs than the layer has columns"
        )
    del reversed_  # the largest layers leave no room for spare copies
    upper = factor.flip(0, 1)
    del factor
    identity = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    return torch.linalg.solve_triangular(upper, identity, upper=True)


@torch.no_grad()
def gptq_quantize(
    weight: Tensor,
    hessian: Tensor,
    bits: int = 4,
    *,
    group_size: int | None = None,
    block_size: int = 128,
    percdamp: float = 0.01,
    act_order: bool = False,
    symmetric: bool = False,
    static_groups: bool = False,
    mse: bool = False,
    group_range: Literal["current", "block"] = "current",
) -> QuantizedWeight:
    """Quantize ``weight [rows, columns]`` so that the outputs ``W x`` change little (Algorithm 1).

    Args:
        hessian: ``H = 2 E[x x^T]``, ``[columns, columns]``, of the layer's inputs (see `GPTQCalibrator`).
            Inputs that are never active (zero diagonal) get weight zero.
        group_size: columns that share a grid; None for one grid a row.
        block_size: columns whose updates to the rest are applied together: speed only, but see group_range.
        percdamp: dampening, as a share of the mean diagonal of ``H``.
        act_order: quantize the columns with the largest diagonal of ``H`` first.
        static_groups: fit the group grids in advance, on the original weights in the original order.
        mse: search each grid's range instead of taking the minimum and maximum.
        group_range: the weights that a group's grid is fitted on when the sweep reaches it: ``"current"``,
            with all updates so far, or ``"block"``, as they stood at the start of the current block, which is
            what the released code does.

    The result's ``loss`` is ``sum e^2 = tr((W - Q) H (W - Q)^T)`` with the dampened ``H``.

    Raises:
        ValueError: shapes, values or options that do not fit, or an ``H`` that is not positive definite.
    """
    check_layer(weight, hessian, bits, group_size)
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if percdamp < 0:
        raise ValueError(f"percdamp must not be negative, got {percdamp}")
    if group_range not in ("current", "block"):
        raise ValueError(f'group_range must be "current" or "block", got {group_range!r}')
    if static_groups and group_size is None:
        raise ValueError("static_groups needs a group_size")

    W = working_copy(weight)
    columns = W.shape[1]
    hessian = hessian.to(W.device, torch.float64, copy=True)
    row_grid = fit_grid(W, bits, symmetric=symmetric, mse=mse)  # before dead inputs are dropped, as released
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    W[:, dead] = 0

    size = group_size or columns
    grids: list[Grid] = []
    if group_size is None:
        grids = [row_grid]
    elif static_groups:
        grids = [fit_grid(part, bits, symmetric=symmetric, mse=mse) for part in W.split(size, 1)]

    order = torch.arange(columns, device=W.device)
    if act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
        W, hessian = W[:, order], hessian[order][:, order]
    W = W.T.contiguous()  # from here on W[j] is column j of the weight, side by side in memory
    group_of = (order if static_groups else torch.arange(columns, device=W.device)) // size
    group_at = group_of.tolist()
    U = inverse_cholesky(hessian, percdamp).to(W.dtype)
    pivots = U.diagonal().tolist()

    codes = torch.empty_like(W)
    loss = torch.zeros((), dtype=torch.float64, device=W.device)
    for start in range(0, columns, block_size):
        end = min(start + block_size, columns)
        errors = torch.zeros_like(W[start:end])
        untouched = W[start:end].clone() if group_range == "block" else None
        for j in range(start, end):
            if len(grids) <= group_at[j]:  # the sweep enters a new group
                reach = min(j + size, columns)
                inside, beyond = W[j : min(reach, end)], W[end:reach]
                if untouched is not None:
                    inside = untouched[j - start : reach - start]
                elif reach > end:  # updates from this block that are still to come
                    beyond = beyond - U[start:end, end:reach].T @ errors
                grids.append(fit_grid(torch.cat([inside, beyond]).T, bits, symmetric=symmetric, mse=mse))
            grid = grids[group_at[j]]
            w = W[j, :, None]
            code = grid.encode(w)
            e = (w - grid.decode(code))[:, 0] / pivots[j]
            W[j + 1 : end].addr_(U[j, j + 1 : end], e, alpha=-1)
            codes[j], errors[j - start] = code[:, 0], e
        W[end:].addmm_(U[start:end, end:].T, errors, alpha=-1)  # lazy: one product instead of many updates
        loss += errors.double().square().sum()

    back = torch.argsort(order)
    return QuantizedWeight(
        integers=codes[back].T.contiguous().to(torch.int16),
        scale=torch.cat([g.scale for g in grids], 1),
        zero=torch.cat([g.zero for g in grids], 1),
        group_of=group_of[back],
        bits=bits,
        loss=loss.item(),
    )
