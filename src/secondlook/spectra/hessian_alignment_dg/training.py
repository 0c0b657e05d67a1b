"""Full-batch training of many independent networks at once, each on its own domains, with a penalty of its head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from secondlook.curvature import probe_vectors

from .domains import Domain
from .method import HessianAlignment, head_hessian

__all__ = ["PENALTIES", "Recipe", "accuracies", "head_distance", "train"]

Params = list[Tensor]  # weights and biases of three layers, each with a leading axis of runs
Penalty = Callable[[Sequence[Domain], tuple[Tensor, Tensor], Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Recipe:
    """What all arms share. The penalty's weight is 1 until step `anneal`; the loss is divided by the weight after."""

    hidden: int
    lr: float
    steps: int
    anneal: int
    probes: int


def irm(domains: Sequence[Domain], head: tuple[Tensor, Tensor], _: Sequence[Tensor]) -> Tensor:
    """IRMv1 (Arjovsky et al., 2019): squared derivative of each loss by a factor on the logits, at one; the mean."""
    terms = []
    for z, y in domains:
        logits = logits_of(head, z)
        terms.append(((logits.sigmoid() - y) * logits).mean().square())
    return sum(terms) / len(terms)


def vrex(domains: Sequence[Domain], head: tuple[Tensor, Tensor], _: Sequence[Tensor]) -> Tensor:
    """V-REx (Krueger et al., 2021): variance of the domains' losses."""
    losses = torch.stack([F.binary_cross_entropy_with_logits(logits_of(head, z), y) for z, y in domains])
    return losses.var(correction=0)


PENALTIES: dict[str, Penalty | None] = {
    "erm": None,
    "irm": irm,
    "vrex": vrex,
    "gradient": HessianAlignment("hgp", alpha=0.0, reduction="sum"),
    "hgp": HessianAlignment("hgp", reduction="sum"),
    "hutchinson": HessianAlignment("hutchinson", reduction="sum"),
    "exact": HessianAlignment("exact", reduction="sum"),
}


def logits_of(head: tuple[Tensor, Tensor], z: Tensor) -> Tensor:
    """Logits `[N]` of features `[N, F]`."""
    return (z @ head[0].mT + head[1]).squeeze(-1)


def features(params: Params, x: Tensor) -> Tensor:
    """The last hidden layer."""
    W1, b1, W2, b2, *_ = params
    return torch.relu(torch.relu(x @ W1.mT + b1.unsqueeze(-2)) @ W2.mT + b2.unsqueeze(-2))


def start(inputs: int, hidden: int, streams: Sequence[int], device: torch.device) -> Params:
    """Xavier-uniform weights and zero biases, one network a stream."""
    stacks: list[list[Tensor]] = []
    for stream in streams:
        generator, layers = torch.Generator().manual_seed(stream), []
        for fan_in, fan_out in ((inputs, hidden), (hidden, hidden), (hidden, 1)):
            bound = (6 / (fan_in + fan_out)) ** 0.5
            layers += [bound * (2 * torch.rand(fan_out, fan_in, generator=generator) - 1), torch.zeros(fan_out)]
        stacks.append(layers)
    return [torch.stack(p).to(device).requires_grad_() for p in zip(*stacks, strict=True)]


def train(
    method: str,
    domains: Sequence[Domain],
    options: Sequence[tuple[float, float]],
    streams: Sequence[int],
    recipe: Recipe,
    look: Callable[[int, Params], None] | None = None,
) -> Params:
    """Train a run for every stream, with the penalty's weight and the l2 strength of `options`, by Adam.

    `domains` hold inputs `[runs, N, D]` and labels `[runs, N]`; `look(step, params)` is called before every step.
    """
    device, penalty = domains[0][0].device, PENALTIES[method]
    params = start(domains[0][0].shape[-1], recipe.hidden, streams, device)
    weights, l2 = (torch.tensor(v, device=device) for v in zip(*options, strict=True))
    draws = [torch.Generator().manual_seed(stream + 1) for stream in streams]
    optimizer = torch.optim.Adam(params, lr=recipe.lr)

    def loss(params: Params, data: list[Domain], probes: list[Tensor], weight: Tensor, l2: Tensor) -> Tensor:
        seen, head = [(features(params, x), y) for x, y in data], (params[-2], params[-1])
        losses = [F.binary_cross_entropy_with_logits(logits_of(head, z), y) for z, y in seen]
        total = sum(losses) / len(losses) + l2 * sum(p.square().sum() for p in params)
        if penalty is not None:
            total = total + weight * penalty(seen, head, probes)
        return total / weight.clamp(min=1)

    together = vmap(loss)
    for step in range(recipe.steps):
        if look is not None:
            look(step, params)
        probes = rademacher(recipe, len(domains) + 1, draws, device) if method == "hutchinson" else []
        now = weights if step >= recipe.anneal else torch.ones_like(weights)
        optimizer.zero_grad(set_to_none=True)
        together(params, list(domains), probes, now, l2).sum().backward()
        optimizer.step()
    return [p.detach() for p in params]


def rademacher(recipe: Recipe, count: int, draws: list[torch.Generator], device: torch.device) -> list[Tensor]:
    """`count` sets of fresh probes for every run, `[runs, P, T]` each."""
    size = recipe.hidden + 1
    drawn = [probe_vectors(size, count * recipe.probes, generator=g, dtype=torch.float32) for g in draws]
    return list(torch.stack(drawn).to(device).split(recipe.probes, dim=2))


@torch.no_grad()
def accuracies(params: Params, domain: Domain) -> Tensor:
    """Accuracy of every run in percent, `[runs]`."""
    x, y = domain
    logits = (features(params, x) @ params[-2].mT + params[-1].unsqueeze(-2)).squeeze(-1)
    return 100 * ((logits > 0) == (y > 0.5)).float().mean(1)


@torch.no_grad()
def head_distance(params: Params, domains: Sequence[Domain]) -> Tensor:
    """Spectral norm of the difference of the first two domains' head Hessians, over that of their mean, `[runs]`."""

    def distance(params: Params, data: list[Domain]) -> Tensor:
        head = (params[-2], params[-1])
        a, b = (head_hessian(features(params, x), y, head) for x, y in data)
        return torch.linalg.matrix_norm(a - b, 2) / torch.linalg.matrix_norm((a + b) / 2, 2)

    return vmap(distance)(params, list(domains[:2]))
