"""The networks that are trained and pruned, and how an arm trains one."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from secondlook.optimizers.adahessian import AdaHessian
from secondlook.optimizers.m_fac.optimizer import MFAC
from secondlook.problems.augment import crop_and_flip
from secondlook.problems.datasets import Dataset
from secondlook.problems.images import ImageProblem
from secondlook.problems.models import digits_cnn, mlp, resnet20
from secondlook.problems.pairing import first_stream
from secondlook.problems.training import History, accuracy, cross_entropy, fit, step_decay

LOSS_ROWS = 2048  # training examples on which the training loss is read


PROBLEMS = {
    "digits-mlp": ImageProblem("digits", partial(mlp, (64, 64, 10))),
    "digits-cnn": ImageProblem("digits", partial(digits_cnn, (16, 32), batch_norm=True)),
    "cifar10-resnet20": ImageProblem("cifar10-jpeg", resnet20, crop_and_flip),
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
    arm: str,
    lr: float,
    seed: int,
    problem: ImageProblem,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int,
    decay: float,
    curve: bool = False,
) -> tuple[nn.Module, History]:
    """One run, its learning rate x 0.1 after half and three quarters of the epochs; a row at the end, or every epoch
    of a `curve`."""
    stream = first_stream(arm, seed, 3)
    model, batches = problem.start(data, batch_size, stream)
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
    every = batches.steps_per_epoch if curve else steps
    history = fit(model, opt, batches, cross_entropy, steps=steps, schedule=schedule, evaluate=evaluate, every=every)
    return model.eval(), history
