"""Small networks of one shape trained side by side: they share the passes, and each keeps its own weights.

A few of them take little longer than one, for most of the time of a small network goes into calls, not arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secondlook.problems.training import Batch, History, fit

__all__ = ["SideBySide", "fit_each", "outputs"]


def outputs(networks: Sequence[nn.Sequential], x: Tensor) -> Tensor:
    """Outputs `[n, B, ...]` of `mlp` networks of one shape, each for its own inputs `[n, B, ...]`; to the same bits."""
    x = x.flatten(2)
    for alike in zip(*networks, strict=True):
        if isinstance(alike[0], nn.Linear):
            weight, bias = (torch.stack([getattr(m, name) for m in alike]) for name in ("weight", "bias"))
            x = torch.baddbmm(bias[:, None], x, weight.mT)
        elif not isinstance(alike[0], nn.Flatten):
            x = alike[0](x)
    return x


class SideBySide(nn.Module):
    """`mlp` networks as one, see `outputs`; its parameters are theirs."""

    def __init__(self, networks: Sequence[nn.Sequential]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return outputs(list(self.networks), x)


def fit_each(
    networks: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Iterable[Batch]],
    *,
    evaluate: Callable[[nn.Module], dict[str, Any]],
    **options: Any,
) -> list[History] | None:
    """`fit` of classifiers by their cross-entropy, each on its own batches; the histories have no training loss.

    ``optimizer`` has the parameters of all, and must treat every tensor by itself. None where the networks are no
    `mlp`, or where one diverged and so stopped all: train them one by one then, from new weights.
    """
    if not all(isinstance(network, nn.Sequential) for network in networks):
        return None
    seen: list[list[dict[str, float]]] = [[] for _ in networks]

    def look(_: nn.Module) -> dict[str, float]:
        for rows, network in zip(seen, networks, strict=True):
            rows.append({name: float(value) for name, value in evaluate(network).items()})
        return {}

    history = fit(SideBySide(networks), optimizer, _abreast(batches), _losses, evaluate=look, **options)
    if history.diverged:
        return None
    return [
        History([{"step": row["step"], **own} for row, own in zip(history.rows, rows, strict=True)], history.steps)
        for rows in seen
    ]


def _abreast(batches: Sequence[Iterable[Batch]]) -> Iterator[Batch]:
    """Batches x [n, B, ...], y [n, B] of all networks."""
    for batch in zip(*batches, strict=True):
        x, y = zip(*batch, strict=True)
        yield torch.stack(x), torch.stack(y)


def _losses(model: nn.Module, batch: Batch) -> Tensor:
    """The networks' mean cross-entropies, added up: each gets the gradient of its own."""
    x, y = batch
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]
