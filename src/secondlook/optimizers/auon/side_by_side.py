"""Small networks of several seeds trained side by side: they share the passes, each keeps its own matrices."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from secondlook.optimizers.auon.together import Together
from secondlook.optimizers.hidden import Recipe, hidden
from secondlook.problems.pairing import first_stream
from secondlook.problems.training import History, cosine, fit


class SideBySide(nn.Module):
    """`mlp` networks of one shape in one pass, from [n, B, ...] to [n, B, outputs]; the parameters stay theirs."""

    def __init__(self, networks: Sequence[nn.Sequential]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        for alike in zip(*self.networks, strict=True):
            if isinstance(alike[0], nn.Linear):
                weight, bias = (torch.stack([getattr(m, name) for m in alike]) for name in ("weight", "bias"))
                x = torch.baddbmm(bias[:, None], x, weight.mT)
            elif not isinstance(alike[0], nn.Flatten):
                x = alike[0](x)
        return x


def train_seeds(recipe: Recipe, arm: str, options: dict[str, float], seeds: Sequence[int]) -> list[History]:
    """`recipe.train` for each seed. Multilayer perceptrons go side by side, to the same bits, if none diverges."""
    firsts = [first_stream(arm, seed, 2) for seed in seeds]
    networks = [recipe.task.model(torch.Generator().manual_seed(first)) for first in firsts]
    if not all(isinstance(network, nn.Sequential) for network in networks):
        return [recipe.train(arm, options, seed) for seed in seeds]
    matrices = [w for network in networks for w in hidden(network)]
    among = set(matrices)
    model = SideBySide(networks)
    rows: list[list[dict[str, float]]] = [[] for _ in seeds]

    def look(_: nn.Module) -> dict[str, float]:
        for found, network in zip(rows, networks, strict=True):
            found.append({name: float(value) for name, value in recipe.task.evaluate(network).items()})
        return {}

    history = fit(
        model,
        Together(
            recipe.rules[arm.removesuffix("-copy")](matrices, **options),
            Adam([p for p in model.parameters() if p not in among], recipe.rest_lr),
        ),
        _batches(recipe, firsts),
        _losses,
        steps=recipe.steps,
        schedule=cosine(recipe.steps, warmup=recipe.steps // 20),
        evaluate=look,
        every=max(1, recipe.steps // recipe.rows),
    )
    if history.diverged:  # one of them, and it stopped all
        return [recipe.train(arm, options, seed) for seed in seeds]
    return [
        History([{"step": row["step"], **seen} for row, seen in zip(history.rows, found, strict=True)], history.steps)
        for found in rows
    ]


def _batches(recipe: Recipe, firsts: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the networks: x [n, B, ...], y [n, B]."""
    streams = [recipe.task.batches(torch.Generator(recipe.device).manual_seed(first + 1)) for first in firsts]
    for batches in zip(*streams, strict=True):
        x, y = zip(*batches, strict=True)
        yield torch.stack(x), torch.stack(y)


def _losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The networks' mean losses, added up."""
    x, y = batch
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]
