"""One training run of a task by one optimizer, with a clock that stops while the validation loss is looked up."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secondlook.problems import tasks
from secondlook.problems.training import History, cosine, fit

Make = Callable[..., torch.optim.Optimizer]  # (params, lr=...)
TIMED_STEPS = 4


@dataclass
class Trial:
    """One run: its history, the seconds of training before each of the history's rows, and the optimizer's memory."""

    target: float
    history: History = field(default_factory=History)
    seconds: list[float] = field(default_factory=list)
    state: float = 0.0  # bytes of tensors in the optimizer's state, over the bytes of the parameters

    @property
    def final(self) -> float:
        """Final validation loss, infinite for a run that diverged."""
        loss = self.history.last("val_loss")
        return math.inf if math.isnan(loss) else loss

    @property
    def hit(self) -> int | None:
        """The first row at the target, None if there is none."""
        return next((i for i, v in enumerate(self.history.column("val_loss")) if v <= self.target), None)

    @property
    def steps_to_target(self) -> float:
        return math.inf if self.hit is None else self.history.column("step")[self.hit]

    @property
    def seconds_to_target(self) -> float:
        return math.inf if self.hit is None else self.seconds[self.hit]


def train(
    make: Make,
    problem: str,
    *,
    lr: float,
    seed: int,
    device: str,
    rows: int,
    budget: tasks.Budget | None = None,
) -> Trial:
    """One run of a task, within its own budget or another, from one seed: weights, batches, the optimizer's draws."""
    task, budget = tasks.load(problem, device), budget or tasks.TASKS[problem]
    steps, trial = budget.steps, Trial(budget.target)
    model, batches, optimizer = started(make, task, lr, seed, device)
    clock = [time.perf_counter(), 0.0]  # when training last went on, and the seconds of it so far

    def evaluate(model: nn.Module) -> dict[str, float]:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        clock[1] += time.perf_counter() - clock[0]
        trial.seconds.append(clock[1])
        loss = float(task.validate(model.eval()))
        clock[0] = time.perf_counter()
        return {"val_loss": loss}

    trial.history = fit(
        model,
        optimizer,
        batches,
        task.loss,
        steps=steps,
        schedule=cosine(steps),
        graph=hasattr(optimizer, "wants_graph"),
        closure=bool(getattr(optimizer, "needs_closure", False)),
        evaluate=evaluate,
        every=max(1, steps // rows),
    )
    trial.state = _bytes(_tensors(optimizer.state.values())) / _bytes(model.parameters())
    return trial


def started(
    make: Make, task: tasks.Task, lr: float, seed: int, device: str
) -> tuple[nn.Module, Iterable[Any], torch.optim.Optimizer]:
    """A fresh network, its batches, and its optimizer, from three streams of one seed."""
    model = task.model(torch.Generator().manual_seed(3 * seed)).to(device)
    shuffle, draws = (torch.Generator(device).manual_seed(3 * seed + i) for i in (1, 2))
    takes = inspect.signature(make).parameters
    random = {"generator": draws} if "generator" in takes else {}
    trained = model if next(iter(takes)) == "model" else model.parameters()
    return model, task.batches(shuffle), make(trained, lr=lr, **random)


def steps_of(make: Make, problem: str, device: str, lr: float) -> Callable[[], object]:
    """A call that takes a few steps of training; its state lives on from call to call."""
    task = tasks.load(problem, device)
    model, batches, optimizer = started(make, task, lr, 0, device)
    needs = {
        "graph": hasattr(optimizer, "wants_graph"),
        "closure": bool(getattr(optimizer, "needs_closure", False)),
    }

    def call() -> None:
        fit(model, optimizer, batches, task.loss, steps=TIMED_STEPS, **needs)

    return call


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    """All tensors in nested dicts, lists and tuples."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
