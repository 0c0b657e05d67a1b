"""The small networks on which the approximations are judged; all seeds and weight decays are trained at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secondlook.influence.ekfac_influence.ensemble import losses, member, train_ensemble
from secondlook.influence.ekfac_influence.losses import OutputLoss, output_loss
from secondlook.problems import datasets
from secondlook.problems.datasets import Dataset, Split
from secondlook.problems.models.mlp import mlp

DECAYS = (1e-4, 1e-3, 1e-2)  # each seed takes the one that validates best


@dataclass(frozen=True)
class Task:
    """A data set with the network and the training recipe that go with it."""

    data: str
    loss: str
    sizes: tuple[int, ...]
    activation: Callable[[], nn.Module]
    lr: float

    def network(self, seed: int) -> nn.Module:
        return mlp(self.sizes, self.activation, generator=torch.Generator().manual_seed(seed))

    @property
    def output_loss(self) -> OutputLoss:
        return output_loss(self.loss)


TASKS = {
    "diabetes-mlp": Task("diabetes", "mse", (10, 64, 64, 1), nn.Tanh, 0.03),
    "digits-mlp": Task("digits", "ce", (64, 24, 24, 10), nn.ReLU, 0.1),
    "mnist-mlp": Task("mnist", "ce", (784, 256, 256, 10), nn.ReLU, 0.1),
    # small enough to be trained hundreds of times
    "diabetes-tiny": Task("diabetes", "mse", (10, 16, 16, 1), nn.Tanh, 0.03),
    "digits-tiny": Task("digits", "ce", (64, 16, 10), nn.ReLU, 0.1),
}


def generator(seed: int, stream: int, device: str = "cpu") -> torch.Generator:
    """Independent random streams of one seed."""
    return torch.Generator(device).manual_seed(1000 * seed + stream)


@dataclass(frozen=True)
class Trained:
    """A task with one trained network a seed."""

    task: Task
    data: Dataset
    networks: dict[int, nn.Module]
    decays: dict[int, float]

    def batches(self, size: int = 2048) -> list[tuple[Tensor, Tensor]]:
        """The training data in order."""
        return list(zip(*(t.split(size) for t in self.data.train), strict=True))


def train(name: str, seeds: Sequence[int], *, steps: int, batch_size: int, device: str) -> Trained:
    """Train every seed with every weight decay, keep for each seed the network with the smallest validation loss."""
    task, seeds = TASKS[name], sorted(set(seeds))
    data = datasets.load(task.data).to(device)
    networks = [task.network(seed).to(device) for seed in seeds for _ in DECAYS]
    parameters = train_ensemble(
        networks,
        task.output_loss,
        *data.train,
        steps=steps,
        lr=task.lr,
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(0),
        weight_decay=torch.tensor(DECAYS).repeat(len(seeds)),
    )
    validation = losses(networks[0], parameters, task.output_loss, *data.val).mean(1).view(len(seeds), len(DECAYS))
    best = validation.nan_to_num(nan=float("inf")).argmin(1).tolist()
    at = {seed: i * len(DECAYS) + best[i] for i, seed in enumerate(seeds)}
    chosen = {seed: member(task.network(seed).to(device), parameters, k) for seed, k in at.items()}
    return Trained(task, data, chosen, {seed: DECAYS[best[i]] for i, seed in enumerate(seeds)})


def draw(split: Split, count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` random examples of a split."""
    rows = torch.randperm(len(split.x), generator=g)[:count].to(split.x.device)
    return split.x[rows], split.y[rows]
