"""What the experiments train, and with what."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secondlook.optimizers.innaprop.method import INNAprop
from secondlook.problems.augment import crop_and_flip
from secondlook.problems.datasets import Corpus, Dataset
from secondlook.problems.images import ImageProblem
from secondlook.problems.language import LanguageProblem
from secondlook.problems.models import mlp
from secondlook.problems.models.initial import he, initialised
from secondlook.problems.pairing import streams
from secondlook.problems.side_by_side import fit_each
from secondlook.problems.training import History, Minibatches, accuracy, cosine, cross_entropy, fit, minibatches
from secondlook.problems.zoo.char_gpt import next_character_loss, perplexity

LOOK = 2048  # training images on which the training accuracy is read


def optimizer(arm: str, params: Sequence[Tensor], lr: float, decay: float, second: float = 0.999) -> Optimizer:
    """The optimizer of an arm: adamw or innaprop-ALPHA-BETA, each perhaps with -copy.

    Weight decay is decoupled in all of them; `second` is the decay of the average of squared gradients.
    """
    match arm.removesuffix("-copy").split("-"):
        case ["adamw"]:
            return torch.optim.AdamW(params, lr, (0.9, second), weight_decay=decay, foreach=True)
        case ["innaprop", alpha, beta]:
            return INNAprop(params, lr, float(alpha), float(beta), sigma=second, weight_decay=decay)
    raise ValueError(f"no arm {arm!r}; use adamw, innaprop-ALPHA-BETA, or one with -copy")


def vgg11(width: int = 64, classes: int = 10, generator: torch.Generator | None = None) -> nn.Sequential:
    """VGG11 with batch norm for 32x32 images [N, 3, 32, 32]: eight 3x3 convolutions, five of them pooled; linear."""

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        fan_in = 3
        for factor, pooled in ((1, 1), (2, 1), (4, 0), (4, 1), (8, 0), (8, 1), (8, 0), (8, 1)):
            fan_out = factor * width
            layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] * pooled
            fan_in = fan_out
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(fan_in, classes))

    return initialised(build, generator, he)


PROBLEMS = {
    "digits-mlp": ImageProblem("digits", partial(mlp, (64, 32, 10))),
    "cifar10-vgg11": ImageProblem("cifar10-jpeg", vgg11, crop_and_flip),
}


def train(arm: str, lr: float, seed: int, **recipe: Any) -> History:
    """One run with a cosine; the recipe is `_prepared`'s."""
    (model,), opt, (batches,), loop = _prepared(arm, lr, [seed], **recipe)
    return fit(model, opt, batches, cross_entropy, **loop)


def train_seeds(arm: str, lr: float, seeds: Sequence[int], *, problem: ImageProblem, **recipe: Any) -> list[History]:
    """`train` for each of the seeds; small networks on digits take their steps side by side."""
    if problem.data == "digits":
        models, opt, batches, loop = _prepared(arm, lr, seeds, problem=problem, **recipe)
        if found := fit_each(models, opt, batches, **loop):
            return found
    return [train(arm, lr, seed, problem=problem, **recipe) for seed in seeds]


def _prepared(
    arm: str,
    lr: float,
    seeds: Sequence[int],
    *,
    problem: ImageProblem,
    data: Dataset,
    epochs: int,
    batch_size: int,
    weight_decay: float,
    every: int | None = None,
) -> tuple[list[nn.Module], Optimizer, list[Minibatches], dict[str, Any]]:
    """Fresh networks, one optimizer for all of them, their batches, and the loop's options.

    Looked at are training and test accuracy at every `every` epochs, or validation at the end alone.
    """
    drawn = [streams(arm, seed, data.train.x.device) for seed in seeds]
    models = [problem.model(generator=weights).to(data.train.x.device) for weights, _ in drawn]
    batches = [minibatches(*data.train, batch_size, order, problem.augment) for _, order in drawn]
    steps = epochs * batches[0].steps_per_epoch

    @torch.no_grad()
    def evaluate(model: nn.Module) -> dict[str, float | Tensor]:
        model.eval()
        if every:
            seen = accuracy(model, data.train.x[:LOOK], data.train.y[:LOOK])
            return {"train_accuracy": seen, "test_accuracy": accuracy(model, *data.test)}
        return {"val_accuracy": accuracy(model, *data.val), "val_loss": cross_entropy(model, data.val)}

    opt = optimizer(arm, [p for model in models for p in model.parameters()], lr, weight_decay)
    rows = every and every * batches[0].steps_per_epoch
    return models, opt, batches, {"steps": steps, "schedule": cosine(steps), "evaluate": evaluate, "every": rows}


def train_gpt(
    arm: str,
    lr: float,
    seed: int,
    *,
    text: Corpus,
    size: dict[str, int],
    batch_size: int,
    steps: int,
    weight_decay: float,
    second: float,
    device: str,
    part: str = "test",
) -> float:
    """Loss on a part of the text, in nats a character, after one run of a character-level transformer."""
    weights, order = streams(arm, seed, device)
    problem = LanguageProblem(text, size, batch_size, device)
    model = problem.model(weights)
    opt = optimizer(arm, list(model.parameters()), lr, weight_decay, second)
    schedule = cosine(steps, warmup=max(1, steps // 20))
    if fit(model, opt, problem.batches(order), next_character_loss, steps=steps, schedule=schedule).diverged:
        return math.inf
    return math.log(perplexity(model.eval(), problem.held_out(part, count=None)))
