"""Two optimizers for one model: matrices by one rule, everything else by another."""

from collections import ChainMap
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Together:
    """Several optimizers that step as one, for training loops that know a single optimizer.

    Groups are shared with the parts, so a schedule that sets their learning rates reaches each part.

    Raises:
        ValueError: a parameter belongs to two of them.
    """

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        params = [p for group in self.param_groups for p in group["params"]]
        if len(set(params)) != len(params):
            raise ValueError("a parameter belongs to two of the optimizers; give it to one")

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> ChainMap[Tensor, Any]:
        return ChainMap(*(part.state for part in self.parts))

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate the closure once, where there is one, then step with every part."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
