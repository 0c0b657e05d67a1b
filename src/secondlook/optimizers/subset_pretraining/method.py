"""Subset pretraining (arXiv:2410.16523): to the minimum on a small fixed subset, then briefly over the full set.

The wager is that a subset whose targets outnumber the parameters has its minimum near that of the full set. Cost is
counted in sample gradients, examples times passes; evaluations of a line search are passes like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secondlook.curvature.flat import pack, unpack
from secondlook.optimizers.nonlinear_cg import FunctionAndGradient, bracketing, conjugate_gradient

Loss = Callable[[Tensor, Tensor], Tensor]
PRETRAINING = ("cg", "lbfgs", "adam")
SEARCH = partial(bracketing, rtol=0.1)  # at equal evaluations better than an exact search


def overdetermination_ratio(n_examples: int, n_outputs: int, n_params: int) -> float:
    """Target numbers for each free parameter, Q = K M / P."""
    return n_examples * n_outputs / n_params


def balanced_subset(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Indices [size] of a random subset in which no class has two examples more than another, as far as they last.

    Args:
        labels: classes, [K] integers.
        size: how many, at most K.
        generator: the draw, on the CPU.
    """
    if not 1 <= size <= len(labels):
        raise ValueError(f"size must lie between 1 and the {len(labels)} examples, got {size}")
    labels = labels.cpu()
    order = torch.randperm(len(labels), generator=generator)
    turn = torch.empty_like(order)  # an example is the turn-th of its class in this order
    for label in labels.unique():
        of_class = order[labels[order] == label]
        turn[of_class] = torch.arange(len(of_class))
    return order[turn[order].argsort(stable=True)][:size]


@dataclass
class History:
    """Cost so far, in sample gradients, and what `evaluate` said then; the first entry is the start.

    Attributes:
        sample_gradients: cost at each look.
        losses: the value (or whatever `evaluate` returns) at each look.
        pretraining: number of entries up to the end of pretraining.
    """

    sample_gradients: list[float] = field(default_factory=list)
    losses: list[Any] = field(default_factory=list)
    pretraining: int = 0

    def look(self, cost: float, value: Any) -> None:
        self.sample_gradients.append(cost)
        self.losses.append(value)


def flat_objective(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> FunctionAndGradient:
    """Loss of all of `x`, `y` and its gradient at parameters in one vector [P], to which the model is moved."""
    params = list(model.parameters())

    def fun_and_grad(w: Tensor) -> tuple[Tensor, Tensor]:
        move(params, w)
        with torch.enable_grad():
            value = loss(model(x), y)
            grads = torch.autograd.grad(value, params)
        return value.detach(), pack(grads)

    return fun_and_grad


@torch.no_grad()
def move(params: Sequence[Tensor], w: Tensor) -> None:
    """Put the entries of `w` into the parameters."""
    torch._foreach_copy_(list(params), unpack(w, params))


def descend(model: nn.Module, optimizer: Optimizer, loss: Loss, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """A closure for `optimizer.step` that evaluates loss and gradient of these examples."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        return value

    return closure


def pretrain(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss, rule: str, passes: int, lr: float, look: Callable[[int], None]
) -> int:
    """Full-batch training on the subset for so many passes; returns the passes made. `look(passes)` after each step.

    "cg" and "lbfgs" search along each direction and may stop early where no lower point is found; "adam" takes steps
    of `lr`.
    """
    if rule == "cg":
        start = pack([p.detach() for p in model.parameters()])
        fun, made = flat_objective(model, x, y, loss), [0]

        def counted(w: Tensor) -> tuple[Tensor, Tensor]:
            made[0] += 1
            return fun(w)

        def visit(evaluations: int, w: Tensor) -> None:
            move(list(model.parameters()), w)
            look(evaluations)

        trace = conjugate_gradient(counted, start, start.dtype, passes, SEARCH, visit)
        move(list(model.parameters()), trace.w)
        return made[0]
    if rule == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr)
        closure = descend(model, optimizer, loss, x, y)
        for step in range(passes):
            optimizer.step(closure)
            look(step + 1)
        return passes
    options = {"max_iter": 1, "max_eval": 20, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(model.parameters(), **options)
    state = optimizer.state[next(model.parameters())]
    closure, made = descend(model, optimizer, loss, x, y), 0
    while made < passes:
        optimizer.step(closure)
        if state["func_evals"] == made:
            break
        made = state["func_evals"]
        look(made)
    return made


def fine_tune(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    look: Callable[[int], None],
) -> None:
    """Ordinary epochs of mini-batches over all of `x`, `y`; `look(epochs)` after each. Also conventional training."""
    for epoch in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).to(x.device).split(batch_size):
            optimizer.step(descend(model, optimizer, loss, x[rows], y[rows]))
        look(epoch + 1)


def subset_pretrain(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    fraction: float,
    pre_opt: str = "cg",
    pre_passes: int = 200,
    fine_opt: Callable[[Any], Optimizer] | None = None,
    fine_epochs: int = 3,
    seed: int = 0,
    *,
    loss: Loss = nn.functional.mse_loss,
    labels: Tensor | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    batch_size: int = 64,
    lr: float = 1e-3,
) -> History:
    """Train `model` on a fixed random subset, then on everything.

    Args:
        model: is trained in place; a model without noise or batch statistics, for the line search compares values.
        x, y: all training examples, [K, ...], and their targets, [K, M].
        fraction: of the examples in the subset, in (0, 1]; 1 leaves their order alone.
        pre_opt: "cg" (non-linear conjugate gradients), "lbfgs" or "adam", each on the whole subset at once.
        pre_passes: evaluations of the subset's loss and gradient, line searches included; L-BFGS may exceed it by
            its last search.
        fine_opt: makes the optimizer of the second part from the parameters; by default Adam.
        fine_epochs: epochs over all examples.
        seed: of the subset and of the order of the batches.
        loss: of outputs and targets, a mean over examples.
        labels: classes [K] among which the subset is balanced; by default the largest target.
        evaluate: called with the model at every look; by default the loss of all examples.
        batch_size: of the second part.
        lr: step size of Adam, in either part.

    Raises:
        ValueError: a fraction or a rule out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    if pre_opt not in PRETRAINING:
        raise ValueError(f"pre_opt must be one of {', '.join(PRETRAINING)}, got {pre_opt!r}")
    generator = torch.Generator().manual_seed(seed)
    size = max(1, round(fraction * len(x)))
    labels = y.argmax(-1) if labels is None else labels
    chosen = balanced_subset(labels, size, generator).to(x.device) if size < len(x) else slice(None)

    @torch.no_grad()
    def all_examples(model: nn.Module) -> float:
        return float(loss(model(x), y))

    evaluate, history = evaluate or all_examples, History()
    history.look(0, evaluate(model))
    passes = pretrain(
        model, x[chosen], y[chosen], loss, pre_opt, pre_passes, lr,
        lambda passes: history.look(passes * size, evaluate(model)),
    )  # fmt: skip
    history.pretraining = len(history.losses)
    optimizer = fine_opt(model.parameters()) if fine_opt else torch.optim.Adam(model.parameters(), lr)
    fine_tune(
        model, x, y, loss, optimizer, fine_epochs, batch_size, generator,
        lambda epochs: history.look(passes * size + epochs * len(x), evaluate(model)),
    )  # fmt: skip
    return history
