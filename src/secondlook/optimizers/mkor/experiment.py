"""MKOR's three rules as inverses, the cost of keeping one, and training with them."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondlook.optimizers.factor import cholesky
from secondlook.optimizers.mkor.method import MKOR, RULES, rank1_inverse_update
from secondlook.optimizers.mkor.work import Work
from secondlook.problems.datasets import Dataset, Split
from secondlook.problems.images import ImageProblem
from secondlook.problems.models import mlp, resnet20
from secondlook.problems.pairing import streams
from secondlook.problems.training import History, cosine, cross_entropy, fit, minibatches, mse
from secondlook.problems.tuning import TUNING_SEED, least
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved


def inverses(run: Run, *, size: int, gamma: float, updates: int) -> None:
    """Each rule beside the dense inverse of the averaged factor, over updates with random vectors, in float64.

    The factor starts as a random positive definite matrix, and the rules from its inverse. `forgetting` is what happens
    to a direction that no vector comes along.
    """
    for seed in run.track(run.seeds, "seeds"):
        draws = torch.Generator().manual_seed(seed)
        x = torch.randn(4 * size, size, generator=draws, dtype=torch.float64)
        factor = x.T @ x / len(x)
        start = torch.linalg.inv(factor)
        kept = dict.fromkeys(RULES, (start + start.T) / 2)
        vectors = torch.randn(updates, size, generator=draws, dtype=torch.float64)
        for step, v in enumerate(vectors, start=1):
            factor = gamma * factor + (1 - gamma) * torch.outer(v, v)
            true = torch.linalg.inv(factor)
            for rule, before in kept.items():
                after = kept[rule] = rank1_inverse_update(before, v, gamma, rule)
                keep = partial(run.record, method=rule, problem=f"d{size}", seed=seed, step=step)
                keep("inverse_error", torch.linalg.norm(after - true) / torch.linalg.norm(true))
                keep("response", (v @ after @ v) / (v @ before @ v))
                keep("top_eigenvalue", torch.linalg.eigvalsh(after)[-1])
            run.record("response", 1 / gamma, method="forgetting", problem=f"d{size}", seed=seed, step=step)


def refresh_cost(run: Run, *, sizes: list[int], repeats: int, dtype: str) -> None:
    """Operations of one refresh by each rule and by `products`, the same as it is printed, with products of matrices;
    time of each rule and of `cholesky`, which inverts the dense factor.

    Operations are counted on tensors without data, and the times do not depend on the numbers: the factor stands in for
    its inverse.
    """
    for seed in run.track(run.seeds, "seeds"):
        draws = torch.Generator().manual_seed(seed)
        for size in sizes:
            x = torch.randn(size, size, generator=draws).to(run.device, getattr(torch, dtype))
            factor = x.T @ x / size + torch.eye(size, dtype=x.dtype, device=x.device)
            empty = factor.to("meta"), x[0].to("meta")
            for method, call in {**_refreshes(*empty), "products": partial(_as_printed, *empty)}.items():
                with Work() as work:
                    call()
                run.record("refresh_work", work.operations, method=method, problem=dtype, seed=seed, step=size)
            calls = _refreshes(factor, x[0])
            times = interleaved({**calls, "cholesky": partial(_cholesky_inverse, factor)}, repeats=repeats)
            # The least disturbed repeat: whatever else the machine does only adds time.
            for method, seconds in times.groupby("name")["seconds"].min().items():
                run.record("refresh_time", 1e3 * seconds, method=method, problem=dtype, seed=seed, step=size)


def _refreshes(inverse: Tensor, v: Tensor) -> dict[str, Callable[[], Tensor]]:
    return {rule: partial(rank1_inverse_update, inverse, v, 0.95, rule) for rule in RULES}


def _cholesky_inverse(factor: Tensor) -> Tensor:
    return torch.cholesky_inverse(cholesky(factor))


def _as_printed(inverse: Tensor, v: Tensor) -> Tensor:
    return inverse + inverse @ torch.outer(v, v) @ inverse


@dataclass(frozen=True)
class Problem:
    """A network on images: to classify them, or to bring them through a bottleneck."""

    images: ImageProblem
    rebuild: bool = False

    def load(self, device: str) -> Dataset:
        """Inputs and targets on the device."""
        data = self.images.load(device)
        return data.map(lambda s: Split(s.x.flatten(1), s.x.flatten(1))) if self.rebuild else data

    @property
    def loss(self) -> Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]:
        return mse if self.rebuild else cross_entropy


PROBLEMS = {
    "digits-autoencoder": Problem(ImageProblem("digits", partial(mlp, (64, 32, 8, 32, 64), nn.Tanh)), rebuild=True),
    "cifar10-resnet20": Problem(ImageProblem("cifar10-jpeg", resnet20)),
}


def optimizer(arm: str, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """An arm's optimizer: sgd (heavy ball), adam, or mkor-RULE on heavy ball, its directions not rescaled with -raw."""
    match arm.split("-"):
        case ["sgd"]:
            return torch.optim.SGD(model.parameters(), lr, momentum=0.9)
        case ["adam"]:
            return torch.optim.Adam(model.parameters(), lr)
        case ["mkor", rule, *raw]:
            return MKOR(model, "sgd", lr, rule=rule, rescale=not raw)
    raise ValueError(
        f"no arm {arm!r}; use sgd, adam, mkor-exact, mkor-printed, mkor-package, or one of these with -raw"
    )


def turn(opt: torch.optim.Optimizer) -> float:
    """Mean cosine between a layer's gradient and its direction at the last step; 1 for an optimizer without factors."""
    if not isinstance(opt, MKOR):
        return 1.0
    pairs = [(p.grad.flatten(), d.flatten()) for p, d in opt.directions.items() if p.ndim > 1]
    return float(torch.stack([F.cosine_similarity(g, d, dim=0) for g, d in pairs]).mean())


@dataclass(frozen=True)
class Setting:
    """What all arms of a comparison share."""

    problem: Problem
    data: Dataset
    steps: int
    batch_size: int

    def train(self, arm: str, lr: float, seed: int, rows: int = 1) -> tuple[History, list[float]]:
        """One run with a cosine schedule, and the `turn` at each of its rows; NAME-copy has its own random streams."""
        device = self.data.train.x.device
        weights, shuffle = streams(arm, seed, device)
        model = self.problem.images.model(generator=weights).to(device)
        opt = optimizer(arm.removesuffix("-copy"), model, lr)
        every, count, turns = max(1, self.steps // rows), itertools.count(1), []

        def look(opt: torch.optim.Optimizer, *_: object) -> None:
            if next(count) % every == 0:
                turns.append(turn(opt))

        opt.register_step_post_hook(look)

        @torch.no_grad()
        def evaluate(model: nn.Module) -> dict[str, float]:
            return {"val_loss": float(self.problem.loss(model.eval(), self.data.val))}

        batches = minibatches(*self.data.train, self.batch_size, shuffle)
        recipe = {"steps": self.steps, "schedule": cosine(self.steps), "evaluate": evaluate, "every": every}
        history = fit(model, opt, batches, self.problem.loss, **recipe)
        return history, turns[: len(history.rows)]

    def tuned(self, arm: str, lrs: list[float]) -> float:
        """The learning rate with the least final validation loss on a seed of its own."""
        return least(lrs, lambda lr: self.train(arm, lr, TUNING_SEED)[0].last("val_loss"))


def training(
    run: Run, *, problem: str, steps: int, batch_size: int, rows: int, lrs: dict[str, list[float]], copied: list[str]
) -> None:
    """Training loss by step, and how far preconditioning turns the gradient."""
    setting = Setting(PROBLEMS[problem], PROBLEMS[problem].load(run.device), steps, batch_size)
    chosen = {arm: setting.tuned(arm, grid) for arm, grid in run.track(lrs.items(), "tuning")}
    for arm in run.track([*lrs, *(f"{arm}-copy" for arm in copied)], "arms"):
        lr = chosen[arm.removesuffix("-copy")]
        run.record("tuned_lr", lr, method=arm, problem=problem)
        for seed in run.seeds:
            history, turns = setting.train(arm, lr, seed, rows)
            keep = partial(run.record_series, method=arm, problem=problem, seed=seed)
            keep("train_loss", history.column("loss"), steps=history.column("step"))
            keep("turn", turns, steps=history.column("step")[: len(turns)])
