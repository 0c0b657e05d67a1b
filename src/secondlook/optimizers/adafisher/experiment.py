"""AdaFisher beside its own ablation and first-order optimizers, and what the diagonals leave out of the factors."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from secondlook.curvature.kronecker import covariances, linear_layers
from secondlook.optimizers.adafisher.method import AdaFisher
from secondlook.optimizers.adahessian.method import AdaHessian
from secondlook.problems.augment import crop_and_flip
from secondlook.problems.datasets import Dataset
from secondlook.problems.images import ImageProblem
from secondlook.problems.models import digits_cnn, mlp, resnet20
from secondlook.problems.pairing import first_stream
from secondlook.problems.training import History, accuracy, cosine, cross_entropy, fit
from secondlook.problems.tuning import TUNING_SEED, least
from secondlook.suite.runner import Run

ROWS = 512  # training images on which the training loss is read

PROBLEMS = {
    "digits-mlp": ImageProblem("digits", partial(mlp, (64, 128, 64, 10))),
    "digits-cnn": ImageProblem("digits", partial(digits_cnn, (8, 16), batch_norm=True)),
    "cifar10-resnet20": ImageProblem("cifar10-jpeg", resnet20, crop_and_flip),
}
BETA, DAMPING, GAMMA = 0.9, 1e-3, 0.8  # released
ADAFISHER = {
    "adafisher": {},
    "adafisher-printed": {"ema": "printed"},
    "adafisher-scalar": {"scalar": True},
}


def optimizer(arm: str, model: nn.Module, lr: float, every: int, seed: int) -> torch.optim.Optimizer:
    """An arm's optimizer; AdaFisher's constants are the released ones but for the refresh period."""
    params = list(model.parameters())
    match arm:
        case "adafisher" | "adafisher-printed" | "adafisher-scalar":
            return AdaFisher(model, lr, BETA, DAMPING, GAMMA, every, **ADAFISHER[arm])
        case "sgd" | "sgd-matched":
            return torch.optim.SGD(params, lr, momentum=BETA)
        case "adam":
            return torch.optim.Adam(params, lr)
        case "adahessian":
            return AdaHessian(params, lr, generator=torch.Generator(params[0].device).manual_seed(seed))
    raise ValueError(f"no arm {arm!r}; use {', '.join(ADAFISHER)}, sgd, sgd-matched, adam or adahessian")


def matched(step: int, every: int) -> float:
    """What heavy ball's learning rate is multiplied by to take AdaFisher's step where every N(H) and N(S) is zero.

    Both averages are then (gamma / 10)^k at the k-th refresh, whatever the layer sees, and the averaged gradient over
    1 - beta^t is (1 - beta) / (1 - beta^t) times heavy ball's sum.
    """
    fisher = (GAMMA / 10) ** (2 * (step // every + 1)) + DAMPING
    return (1 - BETA) / (1 - BETA ** (step + 1)) / fisher


@dataclass(frozen=True)
class Setting:
    """What all arms of a comparison share."""

    problem: ImageProblem
    data: Dataset
    epochs: int
    batch_size: int
    every: int  # steps between refreshes of AdaFisher's factors

    def train(self, arm: str, lr: float, seed: int, *, curve: bool = False) -> tuple[History, nn.Module]:
        """One run with a cosine schedule, and the model it ends with; NAME-copy has random streams of its own.

        Rows have test accuracies; with them, one an epoch for a `curve`, training losses and, for AdaFisher, F's range,
        one at the end otherwise, the validation loss.
        AdaHessian's steps cost two backward passes: it has half the epochs.
        """
        name, stream = arm.removesuffix("-copy"), first_stream(arm, seed, 3)
        model, batches = self.problem.start(self.data, self.batch_size, stream)
        epochs = math.ceil(self.epochs / 2) if name == "adahessian" else self.epochs
        steps = epochs * batches.steps_per_epoch
        decay, opt = cosine(steps), optimizer(name, model, lr, self.every, stream + 2)

        def schedule(step: int) -> float:
            return decay(step) * (matched(step, self.every) if name == "sgd-matched" else 1)

        @torch.no_grad()
        def evaluate(model: nn.Module) -> dict[str, float | Tensor]:
            model.eval()
            row = {"test_accuracy": accuracy(model, *self.data.test)}
            if not curve:
                return row | {"val_loss": cross_entropy(model, self.data.val)}
            row["train_loss"] = cross_entropy(model, (self.data.train.x[:ROWS], self.data.train.y[:ROWS]))
            if isinstance(opt, AdaFisher):
                low, high = zip(*opt.fisher_range().values(), strict=True)
                ratios = [b / a for a, b in zip(low, high, strict=True)]
                row |= {"fisher_low": min(low), "fisher_high": max(high), "fisher_ratio": max(ratios)}
            return row

        history = fit(
            model,
            opt,
            batches,
            cross_entropy,
            steps=steps,
            schedule=schedule,
            graph=hasattr(opt, "wants_graph"),
            evaluate=evaluate,
            every=batches.steps_per_epoch if curve else None,
        )
        if isinstance(opt, AdaFisher):
            opt.remove()
        return history, model

    def tuned(self, arm: str, lrs: list[float]) -> float:
        """The learning rate with the least final validation loss on a seed of its own."""
        return least(lrs, lambda lr: self.train(arm, lr, TUNING_SEED)[0].last("val_loss"))


def training(
    run: Run,
    *,
    problems: dict[str, list[str]],
    epochs: int,
    batch_size: int,
    every: int,
    lrs: dict[str, list[float]],
    shared: dict[str, str],
) -> None:
    """Losses, accuracies and the range of F; arms named in `shared` take the learning rate tuned for another one."""
    for name, arms in problems.items():
        setting = Setting(PROBLEMS[name], PROBLEMS[name].load(run.device), epochs, batch_size, every)
        chosen: dict[str, float] = {}
        for arm in run.track(arms, f"arms on {name}"):
            own = arm.removesuffix("-copy")
            tuned_as = shared.get(own, own)
            if tuned_as not in chosen:
                chosen[tuned_as] = setting.tuned(tuned_as, lrs[tuned_as])
            lr = chosen[tuned_as]
            run.record("tuned_lr", lr, method=arm, problem=name)
            for seed in run.seeds:
                history, _ = setting.train(arm, lr, seed, curve=True)
                epochs_done = [s / (len(setting.data.train.x) // batch_size) for s in history.column("step")]
                keep = partial(run.record_series, method=arm, problem=name, seed=seed)
                for metric in ("train_loss", "test_accuracy"):
                    keep(metric, history.column(metric), steps=epochs_done)
                if "fisher_low" in history.rows[0]:
                    for metric in ("fisher_low", "fisher_high", "fisher_ratio"):
                        keep(metric, history.column(metric), steps=history.column("step"))


def lr_sweep(
    run: Run,
    *,
    problem: str,
    epochs: int,
    batch_size: int,
    every: int,
    lrs: dict[str, list[float]],
    factors: list[float],
) -> None:
    """How much the final test accuracy varies when an arm's tuned learning rate is multiplied by each factor."""
    setting = Setting(PROBLEMS[problem], PROBLEMS[problem].load(run.device), epochs, batch_size, every)
    centres = {arm: setting.tuned(arm, grid) for arm, grid in run.track(lrs.items(), "tuning")}
    for arm in run.track([*centres, "adam-copy"], "arms"):
        run.record("tuned_lr", centres[arm.removesuffix("-copy")], method=arm, problem=problem)
        for seed in run.seeds:
            reached = []
            for factor in factors:
                history, _ = setting.train(arm, factor * centres[arm.removesuffix("-copy")], seed)
                # A run that diverged ends with a network that guesses.
                reached.append(100 / setting.data.classes if history.diverged else history.last("test_accuracy"))
            run.record_series("sweep_accuracy", reached, steps=factors, method=arm, problem=problem, seed=seed)
            run.record("spread", max(reached) - min(reached), method=arm, problem=problem, seed=seed)


def factors(
    run: Run,
    *,
    problems: list[str],
    epochs: int,
    batch_size: int,
    every: int,
    lr: float,
    noise: float,
    rows: int,
) -> None:
    """Full factors of networks that AdaFisher trained: how much of them is diagonal, and what their spectra bear.

    `noise` is the deviation of symmetric Gaussian noise off the diagonal, in units of the factor's mean diagonal entry.
    """
    for name in problems:
        setting = Setting(PROBLEMS[name], PROBLEMS[name].load(run.device), epochs, batch_size, every)
        for seed in run.track(run.seeds, f"seeds on {name}"):
            _, model = setting.train("adafisher", lr, seed)
            batch = (setting.data.train.x[:rows], setting.data.train.y[:rows])
            found = covariances(model.eval(), [batch], _summed_loss, linear_layers(model))
            draws = torch.Generator().manual_seed(first_stream("adafisher", seed, 3) + 2)
            flat = [factor.double().cpu() for pair in found.values() for factor in pair]
            turned = [_turned(f, draws) for f in flat]
            for method, matrices in (("factors", flat), ("turned", turned)):
                shares = torch.stack([m.diagonal().square().sum() / m.square().sum() for m in matrices])
                run.record_series(
                    "diagonal_share", shares, steps=range(len(shares)), method=method, problem=name, seed=seed
                )
                run.record("dominant", 100 * (shares > 0.5).double().mean(), method=method, problem=name, seed=seed)
            changed = {
                "noise": [m + noise * m.diagonal().mean() * _symmetric(m, draws) for m in flat],
                "diagonal-only": [m.diagonal().diag() for m in flat],
            }
            for method, matrices in changed.items():
                moved = torch.stack([_moved(m, c) for m, c in zip(flat, matrices, strict=True)])
                run.record("eigenvalue_change", 100 * moved.max(), method=method, problem=name, seed=seed)


def _summed_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def _turned(matrix: Tensor, generator: torch.Generator) -> Tensor:
    """The matrix in a random orthonormal basis."""
    q, _ = torch.linalg.qr(torch.randn(matrix.shape, generator=generator, dtype=matrix.dtype))
    return q @ matrix @ q.T


def _symmetric(matrix: Tensor, generator: torch.Generator) -> Tensor:
    """Symmetric standard normal draws in the matrix's shape, zeros on the diagonal."""
    upper = torch.randn(matrix.shape, generator=generator, dtype=matrix.dtype).triu(1)
    return upper + upper.T


def _moved(matrix: Tensor, changed: Tensor) -> Tensor:
    """Root-mean-square relative change of those eigenvalues that exceed their mean."""
    before, after = torch.linalg.eigvalsh(matrix), torch.linalg.eigvalsh(changed)
    large = before > before.mean()
    return (after[large] / before[large] - 1).square().mean().sqrt()
