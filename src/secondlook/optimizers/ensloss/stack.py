"""Many small networks trained side by side as one stack of matrices: their seeds, data and options differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from secondlook.optimizers.ensloss.losses import EXP_NORM, Loss
from secondlook.problems.training import cosine

MOMENTUM = 0.9


@dataclass(frozen=True)
class Options:
    """Learning rate and weight decay of every network, each [M]."""

    lr: Tensor
    weight_decay: Tensor


class Stack:
    """M networks of `depth` hidden layers (linear, ReLU, batch norm) and one score; data are laid out [M, features, B].

    Weights are uniform within 1/sqrt(fan in), drawn network by network, so that a network's own seed decides them.
    """

    def __init__(
        self, features: int, width: int, depth: int, generators: Sequence[torch.Generator], device: str = "cpu"
    ) -> None:
        m = len(generators)
        shapes = [(features, width), *[(width, width)] * (depth - 1), (width, 1)]
        drawn = [[uniform(n_in, n_out, g) for n_in, n_out in shapes] for g in generators]
        self.layers = [
            [torch.stack([net[i][part] for net in drawn]).to(device).requires_grad_() for part in (0, 1)]
            for i in range(len(shapes))
        ]
        ones = [torch.ones(m, width, 1, device=device) for _ in range(depth)]
        self.norms = [[one.clone().requires_grad_(), torch.zeros_like(one).requires_grad_()] for one in ones]
        self.running = [[torch.zeros_like(one), one] for one in ones]

    @property
    def params(self) -> list[Tensor]:
        return [p for group in (*self.layers, *self.norms) for p in group]

    def scores(self, x: Tensor, training: bool) -> Tensor:
        """Scores [M, B]."""
        *hidden, (w_out, b_out) = self.layers
        for (w, b), (scale, shift), (mean, var) in zip(hidden, self.norms, self.running, strict=True):
            h = F.relu(torch.baddbmm(b, w, x))
            state = [t.flatten() for t in (mean, var, scale, shift)]
            flat = h.view(1, -1, h.shape[-1])  # every unit of every network is a channel
            x = F.batch_norm(flat, *state, training).view_as(h)
        return torch.baddbmm(b_out, w_out, x)[:, 0]

    def one(self, i: int) -> Stack:
        """Network i alone, on the same memory."""
        alone = copy(self)
        for part in ("layers", "norms", "running"):
            setattr(alone, part, [[t[i : i + 1] for t in group] for group in getattr(self, part)])
        return alone


def uniform(n_in: int, n_out: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weights [n_out, n_in] and biases [n_out, 1] by PyTorch's default rule."""
    bound = 1 / math.sqrt(n_in)
    both = torch.empty(n_out, n_in + 1).uniform_(-bound, bound, generator=generator)
    return both[:, :-1], both[:, -1:]


def train(
    stack: Stack,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    options: Options,
    *,
    epochs: int,
    batch_size: int,
    orders: Sequence[torch.Generator],
    clipped: bool,
) -> None:
    """SGD with momentum and a cosine schedule on x [M, features, n], y [M, n], each network in an order of its own."""
    m, _, n = x.shape
    steps = epochs * (n // batch_size)
    schedule, params = cosine(steps), stack.params
    rates, decays = ([values.view(-1, 1, 1)] * len(params) for values in (options.lr, options.weight_decay))
    velocity = [torch.zeros_like(p) for p in params]
    by_row, networks, step = x.mT.contiguous(), torch.arange(m, device=x.device)[:, None], 0
    for _ in range(epochs):
        shuffled = torch.stack([torch.randperm(n, generator=g) for g in orders]).to(x.device)
        for rows in shuffled.split(batch_size, 1)[: n // batch_size]:
            batch = by_row[networks, rows].mT
            value = m * loss(stack.scores(batch, True), y.gather(1, rows))  # the mean over networks, undone
            grads = list(torch.autograd.grad(value, params))
            with torch.no_grad():
                if clipped:
                    grads = clip_each(grads, m)
                torch._foreach_mul_(velocity, MOMENTUM)
                torch._foreach_add_(velocity, grads)
                torch._foreach_addcmul_(velocity, params, decays)
                now = torch._foreach_mul(rates, -schedule(step))
                torch._foreach_addcmul_(params, velocity, now)
            step += 1


def clip_each(grads: list[Tensor], m: int) -> list[Tensor]:
    """Gradients with every network's norm cut to `EXP_NORM`."""
    squares = sum(g.reshape(m, -1).square().sum(1) for g in grads)
    factor = (EXP_NORM / squares.sqrt()).clamp(max=1).view(-1, 1, 1)
    return [g * factor for g in grads]


@torch.no_grad()
def accuracy(network: Stack, x: Tensor, y: Tensor) -> Tensor:
    """Percentage of the rows x [features, n], y [n] that one network puts on the right side of zero."""
    return 100 * ((network.scores(x[None], training=False) > 0) == (y > 0.5)).double().mean()
