"""What the experiments train, with what, and how it is watched."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim import Optimizer

from secondlook.optimizers.adamp.method import SGDP, AdamP, effective_step, project
from secondlook.optimizers.adamp.stacked import Stacked, cross_entropies
from secondlook.problems.augment import crop_and_flip
from secondlook.problems.datasets import Corpus, Dataset, Split
from secondlook.problems.images import ImageProblem
from secondlook.problems.language import LanguageProblem
from secondlook.problems.models import resnet20
from secondlook.problems.models.initial import initialised
from secondlook.problems.pairing import streams
from secondlook.problems.training import EXPLOSION, cosine, fit, minibatches
from secondlook.problems.zoo.char_gpt import next_character_loss, perplexity

MOMENTUM = 0.9

ARMS: dict[str, Callable[..., Optimizer]] = {  # called with (params, lr, weight_decay=...); foreach: fewer calls
    "sgd": partial(torch.optim.SGD, foreach=True),
    "sgd-momentum": partial(torch.optim.SGD, momentum=MOMENTUM, foreach=True),
    "sgd-nesterov": partial(torch.optim.SGD, momentum=MOMENTUM, nesterov=True, foreach=True),
    "sgdp": partial(SGDP, momentum=MOMENTUM),  # as printed: the momentum itself is not projected
    "sgdp-released": partial(SGDP, momentum=MOMENTUM, project_buffer=True),
    "sgdp-nesterov": partial(SGDP, momentum=MOMENTUM, nesterov=True),
    "adamw": partial(torch.optim.AdamW, foreach=True),
    "adamp": AdamP,
}


def optimizer(arm: str, params: Sequence[Tensor], lr: float, decay: float = 0.0) -> Optimizer:
    """An arm's optimizer; `-matched` steps by lr / (1 - momentum), as far as momentum gets on a constant gradient."""
    name = arm.removesuffix("-copy")
    if name.endswith("-matched"):
        name, lr = name.removesuffix("-matched"), lr / (1 - MOMENTUM)
    if name not in ARMS:
        raise ValueError(f"no arm {arm!r}; use {', '.join(ARMS)}, or one with -matched or -copy")
    return ARMS[name](params, lr, weight_decay=decay)


def digits_mlp(batch_norm: bool, generator: torch.Generator) -> nn.Sequential:
    """8x8 images through two layers of 32 ReLUs, with batch norm in front of the ReLUs or not, to ten classes."""

    def build() -> nn.Sequential:
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in in (64, 32):
            layers += [nn.Linear(fan_in, 32, bias=not batch_norm)] + [nn.BatchNorm1d(32)] * batch_norm + [nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(32, 10))

    return initialised(build, generator)


PROBLEMS = {
    "digits-mlp-bn": ImageProblem("digits", partial(digits_mlp, True)),
    "digits-mlp-plain": ImageProblem("digits", partial(digits_mlp, False)),
    "cifar10-resnet20": ImageProblem("cifar10-jpeg", resnet20, crop_and_flip),
}


def hidden(model: nn.Module) -> list[Tensor]:
    """The weights of all layers but the last: with batch norm behind them, they are scale invariant."""
    return [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)][:-1]


@torch.no_grad()
def row_norms_sq(tensors: Sequence[Tensor]) -> Tensor:
    """Squared norms of all rows (output channels) of the weights, in one vector."""
    return torch.cat([t.flatten(1).square().sum(1) for t in tensors])


class Watch:
    """Follows networks' hidden weights through their optimizers' steps: how they move, and how far on the sphere."""

    def __init__(self, nets: Stacked) -> None:
        among = {id(w) for w in hidden(nets.base)}
        self.weights = [nets.weights[name] for name, w in nets.base.named_parameters() if id(w) in among]
        self.start = self._row_norms_sq()
        self.travelled = torch.zeros_like(self.start)  # sum of |w_{t+1} - w_t|^2, [networks, rows]
        self._restart()

    def _restart(self) -> None:
        self.steps, self.effective, self.invariant = 0, 0.0, 0.0

    def _row_norms_sq(self) -> Tensor:
        return torch.stack([row_norms_sq(own) for own in zip(*self.weights, strict=True)])

    @torch.no_grad()
    def before(self) -> None:
        """To be called before a step, once the gradients are there."""
        self.old = [w.detach().clone() for w in self.weights]
        looks = [project(*(t.flatten(2) for t in (w, w.grad, w.grad)))[1] for w in self.weights]
        self.invariant += torch.stack(looks).double().mean(0)

    @torch.no_grad()
    def after(self) -> None:
        """To be called after it."""
        pairs = [(old.flatten(2), w.flatten(2)) for old, w in zip(self.old, self.weights, strict=True)]
        self.travelled += torch.cat([(new - old).square().sum(2) for old, new in pairs], 1)
        self.effective += torch.cat([effective_step(*pair) for pair in pairs], 1).mean(1)
        self.steps += 1

    def read(self) -> dict[str, Tensor]:
        """Mean norm now; mean effective step and share of weights that look scale invariant since last asked."""
        seen = {
            "weight_norm": self._row_norms_sq().sqrt().mean(1),
            "effective_step": self.effective / self.steps,
            "looks_invariant": 100 * self.invariant / self.steps,
        }
        self._restart()
        return seen

    @property
    def growth(self) -> Tensor:
        """Growth of the sum of squared norms, `[networks]`."""
        return (self._row_norms_sq() - self.start).sum(1)


Job = tuple[float, float, int]  # learning rate, weight decay, seed


def train(
    arm: str,
    jobs: Sequence[Job],
    *,
    problem: ImageProblem,
    data: Dataset,
    epochs: int,
    batch_size: int,
    watched: bool = False,
) -> tuple[list[dict[str, Tensor]], Watch | None]:
    """Runs of one arm side by side, and rows of what was seen of them, `[jobs]`; NaN once a run has diverged.

    Watched: at a constant learning rate, with a row an epoch; else with a cosine and one row at the end.
    """
    x, y = data.train
    drawn = [streams(arm, seed, x.device) for *_, seed in jobs]
    nets = Stacked([problem.model(generator=weights).to(x.device) for weights, _ in drawn])
    batches = [minibatches(x, y, batch_size, order, problem.augment) for _, order in drawn]
    opts = []
    for alike in dict.fromkeys((lr, decay) for lr, decay, _ in jobs):
        own = [p for job, part in zip(jobs, nets.parts, strict=True) if job[:2] == alike for p in part]
        opts.append(optimizer(arm, own, *alike))
    rates = [opt.param_groups[0]["lr"] for opt in opts]
    steps = epochs * batches[0].steps_per_epoch
    schedule = cosine(steps)
    watch = Watch(nets) if watched else None
    first = peak = None
    rows: list[dict[str, Tensor]] = []
    for step in range(steps):
        inputs, classes = (torch.stack(part) for part in zip(*map(next, batches), strict=True))
        losses = cross_entropies(nets(inputs), classes)
        nets.set_gradients(losses)
        seen = losses.detach()
        first, peak = (seen, seen) if first is None else (first, torch.maximum(peak, seen))  # keeps a NaN
        if watch:
            watch.before()
        for opt, rate in zip(opts, rates, strict=True):
            opt.param_groups[0]["lr"] = rate if watched else rate * schedule(step)
            opt.step()
        if watch:
            watch.after()
        if step + 1 == steps or (watched and (step + 1) % batches[0].steps_per_epoch == 0):
            row = {"test_accuracy": share_right(nets, data.test)}
            if watch:
                row |= watch.read()
            else:
                val = nets.scores(data.val.x)
                row["val_accuracy"] = share_right(nets, data.val)
                row["val_loss"] = cross_entropies(val, data.val.y.expand(len(jobs), -1))
            sound = nets.finite() & (peak <= EXPLOSION * first.abs().clamp_min(1))
            rows.append({name: value.where(sound, math.nan) for name, value in row.items()})
    return rows, watch


def share_right(nets: Stacked, part: Split) -> Tensor:
    """Percentage of a part's images that each network puts in their class, `[networks]`."""
    return 100 * (nets.scores(part.x).argmax(-1) == part.y).double().mean(1)


def train_gpt(
    arm: str,
    lr: float,
    decay: float,
    seed: int,
    *,
    text: Corpus,
    size: dict[str, int],
    normalised: bool,
    batch_size: int,
    steps: int,
    device: str,
    part: str = "test",
) -> float:
    """Perplexity after one run of a character-level transformer, `normalised` by weight norm in all its layers."""
    weights, order = streams(arm, seed, device)
    problem = LanguageProblem(text, size, batch_size, device)
    model = problem.model(weights)
    if normalised:
        for layer in [m for m in model.modules() if isinstance(m, nn.Linear)]:
            weight_norm(layer)
    opt = optimizer(arm, list(model.parameters()), lr, decay)
    schedule = cosine(steps, warmup=steps // 10)
    if fit(model, opt, problem.batches(order), next_character_loss, steps=steps, schedule=schedule).diverged:
        return math.inf
    return perplexity(model.eval(), problem.held_out(part, count=None))
