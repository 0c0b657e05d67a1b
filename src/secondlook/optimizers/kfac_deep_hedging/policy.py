"""A recurrent hedging policy, and what its positions earn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from secondlook.problems.models.initial import initialised


class HedgingLSTM(nn.Module):
    """Positions in the underlying from its price, its volatility, the time left and the position before.

    The cells are written with linear layers, one for the inputs and one for the state with the four gates stacked, so
    that hooks see them at every step.
    """

    def __init__(self, hidden: int = 32, layers: int = 1) -> None:
        super().__init__()
        self.hidden = hidden
        widths = [4] + [hidden] * (layers - 1)
        self.inputs = nn.ModuleList(nn.Linear(width, 4 * hidden) for width in widths)
        self.recurrent = nn.ModuleList(nn.Linear(hidden, 4 * hidden, bias=False) for _ in widths)
        self.head = nn.Linear(hidden, 1)

    @classmethod
    def seeded(cls, hidden: int, layers: int, generator: torch.Generator) -> HedgingLSTM:
        """A policy whose weights come from `generator`, by PyTorch's default rule for linear layers."""
        return initialised(lambda: cls(hidden, layers), generator)

    def forward(self, S: Tensor, V: Tensor, strike: float) -> Tensor:
        """Positions [n, N] in (-1, 1), held from step k to k + 1, for paths S, V [n, N + 1]."""
        n, steps = len(S), S.shape[1] - 1
        left = 1 - torch.arange(steps, dtype=S.dtype, device=S.device).expand(n, -1) / steps
        # Ten per cent of the strike and of volatility as units: features of order one.
        seen = torch.stack([10 * (S[:, :-1] / strike).log(), 10 * V[:, :-1].sqrt(), left], -1)
        position = S.new_zeros(n, 1)
        states = [(S.new_zeros(n, self.hidden), S.new_zeros(n, self.hidden)) for _ in self.inputs]
        positions = []
        for now in seen.unbind(1):
            x = torch.cat([now, position], 1)
            for i, (inputs, recurrent) in enumerate(zip(self.inputs, self.recurrent, strict=True)):
                h, c = states[i]
                gates = inputs(x) + recurrent(h)
                keep, write, read = gates[:, : 3 * self.hidden].sigmoid().chunk(3, 1)
                c = keep * c + write * gates[:, 3 * self.hidden :].tanh()
                x = read * c.tanh()
                states[i] = (x, c)
            position = self.head(x).tanh()
            positions.append(position)
        return torch.cat(positions, 1)


def side_by_side(policies: Sequence[HedgingLSTM], S: Tensor, V: Tensor, strike: float) -> Tensor:
    """Positions [R, n, N] of R policies of one shape, each on paths S, V [R, n, N + 1] of its own, in one batch."""
    stacked = {
        name: torch.stack([policy.get_parameter(name) for policy in policies])
        for name, _ in policies[0].named_parameters()
    }
    return vmap(lambda own, S, V: functional_call(policies[0], own, (S, V, strike)))(stacked, S, V)


def hedge_pnl(S: Tensor, positions: Tensor, strike: float, premium: float, cost: float) -> tuple[Tensor, Tensor]:
    """Profit and loss [n] of a short call that is hedged, and the transaction costs [n] in it.

    PnL = premium - max(S_N - K, 0) + sum_k d_k (S_{k+1} - S_k) - cost * sum_k |d_k - d_{k-1}| S_k,  d_{-1} = d_N = 0

    Args:
        S: prices [n, N + 1]; positions: d [n, N].
        cost: proportional cost of a trade, liquidation at the end included.
    """
    nothing = torch.zeros_like(positions[:, :1])
    trades = torch.diff(positions, dim=1, prepend=nothing, append=nothing)
    costs = cost * (trades.abs() * S).sum(1)
    gains = (positions * S.diff(dim=1)).sum(1)
    return premium - (S[:, -1] - strike).clamp_min(0) + gains - costs, costs
