"""What layers see while a model trains: their inputs, and the gradients with respect to their outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Use(NamedTuple):
    """One use of a layer in a forward pass that a backward pass has come back through."""

    inputs: Tensor  # what the layer was given
    grad_outputs: Tensor  # gradient of the loss with respect to what it returned


class Capture:
    """Hooks on layers that keep inputs and output gradients until they are asked for.

    Unlike `curvature.kronecker.Tape` it rides along with the loop's own `loss.backward()`. Layers may be used several
    times, and passes may add up as gradients do: every use is kept. Hooks sit on the outputs as tensors, so activations
    may work in place. A copied or unpickled model has hooks that do nothing.

    Args:
        layers: the layers, by name.
        wanted: asked in every forward pass; nothing is kept where it says no.
    """

    def __init__(self, layers: Mapping[str, nn.Module], wanted: Callable[[], bool]) -> None:
        self.uses: dict[str, list[Use]] = {}
        self.wanted: Callable[[], bool] = wanted
        self.handles = [m.register_forward_hook(partial(self._forward, name)) for name, m in layers.items()]

    def take(self) -> dict[str, list[Use]]:
        """All uses since the last call, by layer, and forget them."""
        uses, self.uses = self.uses, {}
        return uses

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()

    def _forward(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if torch.is_grad_enabled() and output.requires_grad and self.wanted():
            given = inputs[0].detach()
            output.register_hook(lambda grad: self._keep(name, given, grad))

    def _keep(self, name: str, inputs: Tensor, grad: Tensor) -> None:
        self.uses.setdefault(name, []).append(Use(inputs, grad.detach()))

    def __getstate__(self) -> dict[str, Any]:
        return {"uses": {}, "wanted": _never, "handles": []}


def _never() -> bool:
    return False
