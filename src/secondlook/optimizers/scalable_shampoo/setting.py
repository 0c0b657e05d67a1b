"""The optimizers that are compared, and the networks that they train."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondlook.optimizers.scalable_shampoo.kronecker import EPS
from secondlook.optimizers.scalable_shampoo.method import Shampoo
from secondlook.problems.datasets import Dataset
from secondlook.problems.models import mlp, resnet20
from secondlook.problems.pairing import first_stream
from secondlook.problems.side_by_side import outputs
from secondlook.problems.training import accuracy, cosine, cross_entropy, fit, minibatches

NEVER = 10**9
Make = Callable[..., torch.optim.Optimizer]


def maker(arm: str, **options: object) -> Make:
    """An arm's optimizer, called as (params, lr=...).

    Arms: nesterov, adagrad, adam, adamw; shampoo-N with a refresh of the roots every N steps (`never` is allowed),
    grafted to SGD, or to Adagrad or nothing with -adagrad or -ungrafted; shampoo-diagonal, in blocks of one entry.
    """
    first_order: dict[str, Make] = {
        "nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
        "adagrad": torch.optim.Adagrad,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    name = arm.removesuffix("-copy")
    if name in first_order:
        return first_order[name]
    kind, _, rest = name.partition("-")
    if kind != "shampoo":
        raise ValueError(f"no arm {arm!r}; use {', '.join(first_order)} or shampoo-N")
    if rest == "diagonal":
        return partial(Shampoo, block_size=1, **options)
    every, _, graft = rest.partition("-")
    options |= {"graft": {"": "sgd", "ungrafted": "none"}.get(graft, graft)}
    return partial(Shampoo, root_every=NEVER if every == "never" else int(every), **options)


exactly = partial(maker, eps=EPS)  # for problems in float64


def autoencoder(sizes: Sequence[int], seed: int) -> nn.Sequential:
    """Layers of `sizes` with tanh between."""
    return mlp(sizes, nn.Tanh, torch.Generator().manual_seed(seed))


def steps_to(
    target: float, arm: str, lrs: Sequence[float], seeds: Sequence[int], *, x: Tensor, sizes: Sequence[int], limit: int
) -> list[tuple[float, list[float]]]:
    """Full-batch steps until an autoencoder's mean squared error is at `target`, and the losses on the way.

    One run for each pair of a rate and a seed. Steps are infinite where `limit` does not do.
    """
    models = [autoencoder(sizes, first_stream(arm, seed, 1)).to(x.device) for seed in seeds]
    of_rate = defaultdict(list)
    for lr, model in zip(lrs, models, strict=True):
        of_rate[lr] += model.parameters()
    optimizer = maker(arm)([{"params": params, "lr": lr} for lr, params in of_rate.items()], lr=lrs[0])
    runs, steps, losses = list(range(len(models))), [math.inf] * len(models), [[] for _ in models]
    for step in range(limit + 1):
        optimizer.zero_grad()  # runs that have ended get no gradients any more, and rest
        x_each = x.expand(len(runs), *x.shape)
        loss = F.mse_loss(outputs([models[i] for i in runs], x_each), x_each, reduction="none").mean((1, 2))
        for i, value in zip(runs, loss.tolist(), strict=True):
            losses[i].append(value)
            steps[i] = step if value <= target else math.inf
        runs = [i for i in runs if steps[i] == math.inf and losses[i][-1] < 10 * losses[i][0]]
        if not runs:
            break
        loss.sum().backward()
        optimizer.step()
    return list(zip(steps, losses, strict=True))


def train_images(
    arm: str, lr: float, seed: int, *, data: Dataset, width: int, batch_size: int, steps: int, rows: int
) -> list[dict[str, float]]:
    """ResNet-20 with warm-up and a cosine; rows of step, seconds of training, and accuracies in percent."""
    first = first_stream(arm, seed, 2)
    device = data.train.x.device
    model = resnet20(width=width, generator=torch.Generator().manual_seed(first)).to(device)
    batches = minibatches(*data.train, batch_size, torch.Generator(device).manual_seed(first + 1))
    decay = {"weight_decay": 0.05 if arm.startswith("adamw") else 5e-4}
    clock = [time.perf_counter(), 0.0]

    @torch.no_grad()
    def evaluate(model: nn.Module) -> dict[str, float]:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        clock[1] += time.perf_counter() - clock[0]
        model.eval()
        row = {f"{part}_accuracy": accuracy(model, *getattr(data, part)) for part in ("val", "test")}
        clock[0] = time.perf_counter()
        return row | {"seconds": clock[1]}

    optimizer = maker(arm)(model.parameters(), lr=lr, **decay)
    every = max(1, steps // rows)
    schedule = cosine(steps, warmup=steps // 10)
    return fit(
        model, optimizer, batches, cross_entropy, steps=steps, schedule=schedule, evaluate=evaluate, every=every
    ).rows


def first_at(rows: Sequence[dict[str, float]], target: float, part: str, column: str) -> float:
    """`column` of the first row whose accuracy is at `target`, infinite if none is."""
    return next((row[column] for row in rows if row.get(f"{part}_accuracy", 0) >= target), math.inf)


def optimizer_step(
    arm: str, width: int, layers: int, seed: int, device: str
) -> tuple[torch.optim.Optimizer, nn.Module]:
    """An optimizer of square layers that have gradients: its step can be taken again and again."""
    g = torch.Generator().manual_seed(seed)
    model = mlp([width] * (layers + 1), generator=g).to(device)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g).to(device)
    return maker(arm)(model.parameters(), lr=1e-4), model
