"""One training loop for all: batches on the device, no waiting for the device inside, exact resumption.

batches = minibatches(*data.train.to(device), batch_size=64, generator=generator)
history = fit(model, optimizer, batches, cross_entropy, steps=1000, evaluate=..., every=100)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secondlook.problems import checkpoint as state_files
from secondlook.problems.batches import Minibatches, minibatches

__all__ = ["History", "Minibatches", "accuracy", "cosine", "cross_entropy", "fit", "minibatches", "mse", "step_decay"]

Batch = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Any], Tensor]

CHECK_EVERY = 50
EXPLOSION = 1e4
"""A run has diverged when its loss exceeds this many times the first one (or this number, if that is larger)."""


# ----------------------------------------------------------------------------------------- losses, schedules


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the model's scores [N, classes] (or [N, T, classes]) to the classes [N] ([N, T])."""
    x, y = batch
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def mse(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of the model's outputs to targets of the same shape."""
    x, y = batch
    output = model(x)
    if output.shape != y.shape:  # broadcasting would silently compare every output with every target
        raise ValueError(f"outputs {tuple(output.shape)} and targets {tuple(y.shape)} must have the same shape")
    return F.mse_loss(output, y)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 2048) -> float:
    """Percentage of ``x`` that the model, in evaluation mode, puts in class ``y``."""
    training = model.training
    model.eval()
    hits = sum((model(a).argmax(-1) == b).sum() for a, b in zip(x.split(batch_size), y.split(batch_size), strict=True))
    model.train(training)
    return 100 * float(hits) / len(y)


def cosine(steps: int, warmup: int = 0) -> Callable[[int], float]:
    """Multiplier that rises linearly over ``warmup`` steps, then falls to 0 along half a cosine at ``steps``."""

    def multiplier(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return multiplier


def step_decay(milestones: Sequence[int], factor: float = 0.1) -> Callable[[int], float]:
    """Multiplier that is multiplied by ``factor`` at each of the ``milestones`` (in steps)."""
    return lambda step: factor ** sum(step >= milestone for milestone in milestones)


# ----------------------------------------------------------------------------------------- the loop


@dataclass
class History:
    """What `fit` saw: rows of ``step`` (updates done), ``loss`` (mean over the steps since the last row) and
    whatever ``evaluate`` returned; the number of ``steps`` done; whether the run ``diverged``."""

    rows: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    diverged: bool = False

    def column(self, name: str) -> list[float]:
        """Values of ``name`` by row; NaN where a row (the one at which a run diverged) lacks it."""
        return [row.get(name, math.nan) for row in self.rows]

    def last(self, name: str) -> float:
        """The final value of ``name``; NaN if the run diverged or never recorded it."""
        return self.column(name)[-1] if self.rows and not self.diverged else math.nan


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    loss: Loss,
    *,
    steps: int,
    schedule: Callable[[int], float] | None = None,
    graph: bool = False,
    closure: bool = False,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    every: int | None = None,
    checkpoint: Path | str | None = None,
    track: Callable[..., Iterable[int]] | None = None,
    generators: Sequence[torch.Generator] = (),
) -> History:
    """Take ``steps`` updates of ``model`` and return their `History`.

    ``loss(model, batch)`` is a 0-d tensor. ``schedule(step)`` multiplies the learning rates that the optimizer
    came with; step 0 is the first update, and the rates are put back at the end. ``graph`` keeps the
    gradients' own graph for optimizers that differentiate them again; one that has ``wants_graph`` gets it at the
    steps where that is true. ``closure`` hands ``optimizer.step`` a function that recomputes loss and gradients,
    with their graph if ``graph``, on the same batch (L-BFGS). Every ``every`` updates and after the last one a
    row is recorded, with ``evaluate(model)`` in it where given; ``evaluate`` runs in whatever mode the model is
    in (`accuracy` switches to evaluation mode), training mode is restored after it.

    ``checkpoint`` names a file that is rewritten at each of those points and, if it exists, resumed from:
    the run then ends in the same bits as one never interrupted. That takes batches with a ``state_dict`` (as
    `minibatches` has); random streams other than theirs are saved when they are ``optimizer.generator`` or
    listed in ``generators``. ``track(iterable, label)`` draws a progress bar.

    Stops early when the loss is not finite or explodes. This is looked up every 50 steps at most, from a
    running maximum on the device, so that no step waits for the device.
    """
    if steps < 0 or (every is not None and every < 1):
        raise ValueError(f"steps must be >= 0 and every >= 1, got steps={steps}, every={every}")
    every = every or max(steps, 1)
    rates = [group["lr"] for group in optimizer.param_groups] if schedule else []
    run = _Run(model, optimizer, iter(batches), generators)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None:
        run.check_resumable()
        if path.exists():
            run.resume(path)

    history, meter = run.history, run.meter
    remaining = range(0) if history.diverged else range(history.steps, steps)
    model.train()
    for step in track(remaining, "steps") if track else remaining:
        for group, rate in zip(optimizer.param_groups, rates, strict=False):
            group["lr"] = rate * schedule(step)
        try:
            keep = graph and getattr(optimizer, "wants_graph", True)
            _update(model, optimizer, loss, next(run.batches), meter, graph=keep, closure=closure)
        except torch.linalg.LinAlgError:  # an eigensolver given NaN, some steps before the next look at the loss
            if _finite(model) and not meter.exploded():
                raise
            history.diverged = True
        history.steps = step + 1
        due = history.steps % every == 0 or history.steps == steps
        if due or meter.count % CHECK_EVERY == 0:
            history.diverged |= meter.exploded() or (due and not _finite(model))
        if due or history.diverged:
            row = {"step": history.steps, "loss": meter.mean()}
            if evaluate and not history.diverged:
                row |= {name: _number(value) for name, value in evaluate(model).items()}
                model.train()
            history.rows.append(row)
            meter.restart()
            if path is not None:
                run.save(path)
        if history.diverged:
            break
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        group["lr"] = rate
    return history


def _update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    batch: Any,
    meter: _Meter,
    *,
    graph: bool,
    closure: bool,
) -> None:
    """One update; the loss before it goes to the meter."""
    before = meter.count

    @torch.enable_grad()
    def gradients() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        # Fused attention kernels cannot be differentiated twice; the plain ones can.
        with sdpa_kernel(SDPBackend.MATH) if graph else nullcontext():
            value = loss(model, batch)
        if graph:  # backward(create_graph=True) would leave a reference cycle behind
            parameters = [p for p in model.parameters() if p.requires_grad]
            found = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient
        else:
            value.backward()
        if meter.count == before:  # a closure may be called again
            meter.add(value.detach())
        return value

    if closure:
        optimizer.step(gradients)
    else:
        gradients()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # frees the gradients' graph too
    if meter.count == before:
        raise RuntimeError(f"{type(optimizer).__name__}.step did not call the closure it was given")


def _number(value: Tensor | float) -> float:
    return value.item() if isinstance(value, Tensor) else float(value)


def _finite(model: nn.Module) -> bool:
    """Whether all parameters are finite, in one look at the device."""
    norms = torch._foreach_norm(list(model.parameters()), ord=math.inf)
    return bool(torch.stack([norm.double() for norm in norms]).isfinite().all())


class _Meter:
    """Mean and maximum of the loss since the last row, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self.first: Tensor | float | None = None
        self.restart()

    def restart(self) -> None:
        self.count, self.total, self.peak = 0, None, None

    def add(self, value: Tensor) -> None:
        self.first = value if self.first is None else self.first
        self.total = value if self.total is None else self.total + value
        self.peak = value if self.peak is None else torch.maximum(self.peak, value)  # keeps a NaN
        self.count += 1

    def mean(self) -> float:
        return float(self.total) / self.count

    def exploded(self) -> bool:
        peak, first = float(self.peak), abs(float(self.first))
        return not (math.isfinite(peak) and peak <= EXPLOSION * max(1.0, first))


class _Run:
    """Everything that changes during a run, and how it is written down and taken up again."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Any,
        generators: Sequence[torch.Generator],
    ) -> None:
        self.model, self.optimizer, self.batches = model, optimizer, batches
        own = getattr(optimizer, "generator", None)
        self.generators = [*generators, *([own] if isinstance(own, torch.Generator) else [])]
        self.history, self.meter = History(), _Meter()

    def check_resumable(self) -> None:
        if not hasattr(self.batches, "load_state_dict"):
            raise TypeError("a checkpoint needs batches that can be taken up again: use minibatches(...)")

    def save(self, path: Path) -> None:
        state = {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "generators": [generator.get_state() for generator in self.generators],
            "history": vars(self.history),
            "first": float(self.meter.first),
        }
        state_files.write(path, state)

    def resume(self, path: Path) -> None:
        state = state_files.read(path)
        try:
            self.model.load_state_dict(state["model"])
            state_files.load_optimizer(self.optimizer, state["optimizer"])
            for generator, saved in zip(self.generators, state["generators"], strict=True):
                generator.set_state(saved)
            self.batches.load_state_dict(state["batches"])
        except (KeyError, RuntimeError, ValueError) as other:
            raise ValueError(f"{path} is the checkpoint of another run ({other}); delete it or name another") from other
        self.history = History(**state["history"])
        self.meter.first = state["first"]
