"""Image classification: a data set, standardised, and a network for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secondlook.problems import datasets
from secondlook.problems.batches import Minibatches, minibatches
from secondlook.problems.datasets import Dataset, Split


@dataclass(frozen=True)
class ImageProblem:
    """A data set and a network for it."""

    data: str
    model: Callable[..., nn.Module]
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def load(self, device: str) -> Dataset:
        """The data on the device, each channel standardised by the training images."""
        data = datasets.load(self.data).to(device)
        std, mean = torch.std_mean(data.train.x, (0, 2, 3), keepdim=True)
        return data.map(lambda split: Split((split.x - mean) / std, split.y))

    def start(self, data: Dataset, batch_size: int, stream: int) -> tuple[nn.Module, Minibatches]:
        """A network from random stream `stream`, on the data's device, and its batches from the stream after it."""
        device = data.train.x.device
        model = self.model(generator=torch.Generator().manual_seed(stream)).to(device)
        shuffle = torch.Generator(device).manual_seed(stream + 1)
        return model, minibatches(*data.train, batch_size, shuffle, self.augment)
