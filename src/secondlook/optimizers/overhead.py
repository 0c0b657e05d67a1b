"""What an optimizer adds to the gradients: its own time a step on a network of many small tensors.

Time in a closure, forward and backward passes, does not count; what a step differentiates by itself does. Methods that
do more at some steps than at others are timed over `PERIOD` steps, which all their usual periods divide.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from secondlook.optimizers.trial import Make, started
from secondlook.problems.tasks import Task

WIDTH, BATCH = 32, 32
WARMUP = 3  # steps that make the state
PERIOD = 20  # steps in one measurement
LR = 1e-4


class Residual(nn.Module):
    """x <- x + tanh(W x + b) / depth, again and again: gradients of one size in all layers, none of them denormal."""

    def __init__(self, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        with torch.no_grad():
            for p in self.parameters():
                p.uniform_(-(WIDTH**-0.5), WIDTH**-0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).tanh() / len(self.layers)
        return x


def own_times(methods: Mapping[str, Make], tensors: int, device: str, repeats: int) -> dict[str, float]:
    """Seconds of `PERIOD` steps over those of the method called "adamw".

    Each step of the period counts with the least of `repeats` times: whatever else the machine does only adds time. The
    methods take their steps in turn, so that drift hits all alike.
    """
    runs = {name: timed_steps(make, tensors, device) for name, make in methods.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(WARMUP + repeats * PERIOD):
        for name, run in runs.items():
            seconds[name].append(next(run))
    least = {name: sum(min(taken[WARMUP + i :: PERIOD]) for i in range(PERIOD)) for name, taken in seconds.items()}
    return {name: total / least["adamw"] for name, total in least.items()}


def timed_steps(make: Make, tensors: int, device: str) -> Iterator[float]:
    """Train a network of that many weights and biases for ever; yields the optimizer's own seconds, step by step."""
    task = Task(
        model=lambda generator: Residual(tensors // 2, generator),
        batches=lambda generator: iter(lambda: torch.randn(BATCH, WIDTH, generator=generator, device=device), None),
        loss=lambda model, x: model(x).square().mean(),
        validate=lambda model: torch.zeros(()),
    )
    model, batches, optimizer = started(make, task, LR, 0, device)
    for x in batches:
        yield _own_seconds(optimizer, lambda x=x: task.loss(model, x), list(model.parameters()), device)


def _own_seconds(
    optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], params: list[nn.Parameter], device: str
) -> float:
    """Take a step and return its seconds without those of the closure."""

    def now() -> float:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    inside = 0.0

    def closure() -> Tensor:
        nonlocal inside
        start = now()
        optimizer.zero_grad()
        value = loss()
        found = torch.autograd.grad(value, params, create_graph=getattr(optimizer, "wants_graph", False))
        for p, grad in zip(params, found, strict=True):
            p.grad = grad
        inside += now() - start
        return value.detach()

    start = now()
    optimizer.step(closure)
    own = now() - start - inside
    optimizer.zero_grad()  # frees the gradients' graph
    return own
