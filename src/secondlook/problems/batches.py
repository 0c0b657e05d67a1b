"""Minibatches whose place in the data can be saved and found again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["Minibatches", "minibatches"]


class Minibatches:
    """Endless batches of (x, y), reshuffled every epoch; see `minibatches`. Its state can be saved."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        generator: torch.Generator,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    ) -> None:
        if len(x) != len(y):
            raise ValueError(f"x has {len(x)} rows and y has {len(y)}; they must match")
        if not 1 <= batch_size <= len(x):
            raise ValueError(f"batch_size must lie in 1..{len(x)} (the number of rows), got {batch_size}")
        self.x, self.y, self.batch_size, self.generator, self.augment = x, y, batch_size, generator, augment
        self.order: Tensor | None = None
        self.place = 0

    @property
    def steps_per_epoch(self) -> int:
        return len(self.x) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        if self.order is None or self.place + self.batch_size > len(self.order):
            order = torch.randperm(len(self.x), generator=self.generator, device=self.generator.device)
            self.order, self.place = order.to(self.x.device), 0
        rows = self.order[self.place : self.place + self.batch_size]
        self.place += self.batch_size
        x = self.x[rows]
        return (self.augment(x, self.generator) if self.augment else x), self.y[rows]

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "place": self.place, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order = None if state["order"] is None else state["order"].to(self.x.device)
        self.place = state["place"]
        self.generator.set_state(state["generator"])


def minibatches(
    x: Tensor,
    y: Tensor,
    batch_size: int,
    generator: torch.Generator,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Minibatches:
    """Endless batches (x [B, ...], y [B, ...]) on the data's device, in an order redrawn every epoch.

    The last rows of an epoch that do not fill a batch are left out of it, so all batches have one size.
    ``augment(x, generator)`` changes a batch's inputs, e.g. `augment.crop_and_flip`.
    """
    return Minibatches(x, y, batch_size, generator, augment)
