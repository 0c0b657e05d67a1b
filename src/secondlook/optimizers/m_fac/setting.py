"""The networks that are trained and pruned, and how an arm trains one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from secondlook.optimizers.adahessian import AdaHessian
from secondlook.optimizers.m_fac.optimizer import MFAC
from secondlook.problems import datasets
from secondlook.problems.augment import crop_and_flip
from secondlook.problems.datasets import Dataset, Split
from secondlook.problems.models import digits_cnn, mlp, resnet20
from secondlook.problems.training import History, accuracy, cross_entropy, fit, minibatches, step_decay

COPY = 100_003  # an arm's independent copy never sees the streams of the arm
LOSS_ROWS = 2048  # training examples on which the training loss is read


@dataclass(frozen=True)
class Problem:
    """A data set and a network for it."""

    data: str
    model: Callable[..., nn.Module]
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def load(self, device: str) -> Dataset:
        """The data on the device, each channel standardised by the training images."""
        data = datasets.load(self.data).to(device)
        std, mean = torch.std_mean(data.train.x, (0, 2, 3), keepdim=True)
        return data.map(lambda split: Split((split.x - mean) / std, split.y))


PROBLEMS = {
    "digits-mlp": Problem("digits", partial(mlp, (64, 64, 10))),
    "digits-cnn": Problem("digits", partial(digits_cnn, (16, 32), batch_norm=True)),
    "cifar10-resnet20": Problem("cifar10-jpeg", resnet20, crop_and_flip),
}


def optimizer(arm: str, params: Sequence[Tensor], lr: float, decay: float, seed: int) -> torch.optim.Optimizer:
    """An arm's optimizer; `decay` is the strength of an L2 term; mfac-32 has a window of 32."""
    match arm.removesuffix("-copy").split("-"):
        case ["sgd"]:
            return torch.optim.SGD(params, lr, momentum=0.9, weight_decay=decay)
        case ["adam"]:
            return torch.optim.Adam(params, lr, weight_decay=decay)
        case ["adahessian"]:
            return AdaHessian(params, lr, generator=torch.Generator(params[0].device).manual_seed(seed))
        case ["mfac", window]:
            return MFAC(params, lr, n_grads=int(window), weight_decay=decay)
    raise ValueError(f"no arm {arm!r}; use sgd, adam, adahessian, mfac-32 (or another window), or one with -copy")


def train(
    arm: str, lr: float, seed: int, problem: Problem, data: Dataset, *, epochs: int, batch_size: int, decay: float
) -> tuple[nn.Module, History]:
    """One run, its learning rate x 0.1 after half and three quarters of the epochs; a row an epoch."""
    stream = 3 * seed + (COPY if arm.endswith("-copy") else 0)
    device = data.train.x.device
    model = problem.model(generator=torch.Generator().manual_seed(stream)).to(device)
    shuffle = torch.Generator(device).manual_seed(stream + 1)
    batches = minibatches(*data.train, batch_size, shuffle, problem.augment)
    steps = epochs * batches.steps_per_epoch

    @torch.no_grad()
    def evaluate(model: nn.Module) -> dict[str, float | Tensor]:
        model.eval()
        head = (data.train.x[:LOSS_ROWS], data.train.y[:LOSS_ROWS])
        return {
            "train_loss": cross_entropy(model, head),
            "val_loss": cross_entropy(model, data.val),
            "test_accuracy": accuracy(model, *data.test),
        }

    opt = optimizer(arm, list(model.parameters()), lr, decay, stream + 2)
    schedule = step_decay([steps // 2, 3 * steps // 4])
    every = batches.steps_per_epoch
    history = fit(model, opt, batches, cross_entropy, steps=steps, schedule=schedule, evaluate=evaluate, every=every)
    return model.eval(), history
