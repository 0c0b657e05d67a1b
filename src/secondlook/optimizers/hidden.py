"""Networks whose hidden matrices are trained by the rule that is looked at, and everything else by Adam."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from secondlook.optimizers.auon.together import Together
from secondlook.problems import datasets
from secondlook.problems.language import LanguageProblem
from secondlook.problems.models import mlp
from secondlook.problems.pairing import first_stream
from secondlook.problems.side_by_side import fit_each
from secondlook.problems.training import History, cosine, cross_entropy, fit, minibatches
from secondlook.problems.zoo.char_gpt import next_character_loss

Measure = Callable[[nn.Module, Any], Tensor | float]
Rules = Mapping[str, Callable[..., Optimizer]]  # called with the matrices and options


@dataclass(frozen=True)
class Task:
    """A network, its batches and their loss, and what is measured on held-out data."""

    model: Callable[[torch.Generator], nn.Module]
    batches: Callable[[torch.Generator], Iterator[Any]]
    measures: dict[str, Measure]  # one of them is the `loss`
    held_out: dict[str, Any]  # train, val, test

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, Tensor | float]:
        """PART_MEASURE of every part and measure, in evaluation mode."""
        model.eval()
        return {f"{p}_{name}": f(model, d) for p, d in self.held_out.items() for name, f in self.measures.items()}


def digits(sizes: list[int], batch_size: int, device: str, dtype: torch.dtype = torch.float32) -> Task:
    """A deep tanh network on 8x8 digits; `sizes` are its widths from pixels to classes."""
    data = datasets.load("digits").to(device)
    parts = {name: (getattr(data, name).x.to(dtype), getattr(data, name).y) for name in ("train", "val", "test")}
    return Task(
        lambda g: mlp(sizes, nn.Tanh, g).to(device, dtype),
        lambda g: minibatches(*parts["train"], batch_size, g),
        {"loss": cross_entropy},
        parts,
    )


def text(corpus: str, size: dict[str, int], batch_size: int, device: str) -> Task:
    """A character-level transformer; `size` has width, depth, heads and context."""
    problem = LanguageProblem(datasets.corpus(corpus), size, batch_size, device)
    held_out = {name: problem.held_out(name) for name in ("train", "val", "test")}
    return Task(problem.model, problem.batches, {"loss": next_character_loss}, held_out)


def hidden(model: nn.Module) -> list[nn.Parameter]:
    """Weights of all linear and convolution layers but the last; embeddings and vectors are left out."""
    return [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][:-1]


def optimizer(rule: Callable[..., Optimizer], *models: nn.Module, rest_lr: float, **options: float) -> Together:
    """`rule` for the models' hidden matrices and Adam for the rest, the same for every rule."""
    matrices = [w for model in models for w in hidden(model)]
    among = set(matrices)
    rest = [p for model in models for p in model.parameters() if p not in among]
    return Together(rule(matrices, **options), Adam(rest, rest_lr))


@dataclass(frozen=True)
class Recipe:
    """A task trained for `steps` along one cosine."""

    task: Task
    rules: Rules
    steps: int
    rows: int  # how often a run is looked at
    rest_lr: float  # Adam's, for what is not a hidden matrix
    device: str

    def train(self, arm: str, options: dict[str, float], seed: int) -> History:
        """One run, with the task's measures in its history.

        `arm` is a rule and may end in -copy (other random streams). Arms with one seed share weights and batches, so
        they pair.
        """
        (model,), (batches,) = self._started(arm, [seed])
        loss = self.task.measures["loss"]
        return fit(model, self._optimizer(arm, options, [model]), batches, loss, **self._loop())

    def train_seeds(self, arm: str, options: dict[str, float], seeds: Sequence[int]) -> list[History]:
        """`train` for each seed, side by side where that can be, which leaves the training loss out."""
        models, batches = self._started(arm, seeds)
        together = fit_each(models, self._optimizer(arm, options, models), batches, **self._loop())
        return together or [self.train(arm, options, seed) for seed in seeds]

    def _started(self, arm: str, seeds: Sequence[int]) -> tuple[list[nn.Module], list[Iterator[Any]]]:
        """Fresh networks and their batches."""
        firsts = [first_stream(arm, seed, 2) for seed in seeds]
        models = [self.task.model(torch.Generator().manual_seed(first)) for first in firsts]
        return models, [self.task.batches(torch.Generator(self.device).manual_seed(first + 1)) for first in firsts]

    def _optimizer(self, arm: str, options: dict[str, float], models: list[nn.Module]) -> Together:
        return optimizer(self.rules[arm.removesuffix("-copy")], *models, rest_lr=self.rest_lr, **options)

    def _loop(self) -> dict[str, Any]:
        schedule = cosine(self.steps, warmup=self.steps // 20)
        every = max(1, self.steps // self.rows)
        return {"steps": self.steps, "schedule": schedule, "evaluate": self.task.evaluate, "every": every}
