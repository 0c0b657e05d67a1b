"""What layers see while a model trains: their inputs, and the gradients with respect to their outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secondlook.optimizers.base import Base


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


class LayerOptimizer(Base):
    """An optimizer that watches layers of a model: hooks show their inputs and output gradients where a step is `due`.

    Subclasses call `_watch` once they have their groups, and take what was seen from `_hooks` in `_begin`.
    """

    layers: dict[str, nn.Module]

    def _watch(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = dict(layers)
        self._hooks = Capture(self.layers, lambda: self.due)

    @property
    def due(self) -> bool:
        """Whether the next step looks at the layers."""
        return True

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._hooks.remove()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and what the layers showed while they were computed."""
        self._hooks.take()
        super().zero_grad(set_to_none)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._watch(self.layers)


def gradient_matrix(layer: nn.Linear | nn.Conv2d, *, biased: bool) -> Tensor:
    """Gradient of a layer's weight as [out, in], and with a last column where it has a bias: zeros unless `biased`."""
    W = layer.weight.grad.flatten(1)
    if layer.bias is None:
        return W
    return torch.cat([W, (layer.bias.grad if biased else torch.zeros_like(layer.bias))[:, None]], 1)


def from_matrix(layer: nn.Linear | nn.Conv2d, matrix: Tensor, *, biased: bool) -> dict[nn.Parameter, Tensor]:
    """What a matrix [out, in (+ 1)] says of the layer's weight and, where it is trained too, bias."""
    columns = layer.weight[0].numel()
    found = {layer.weight: matrix[:, :columns].reshape(layer.weight.shape)}
    return found | ({layer.bias: matrix[:, -1]} if biased else {})


def _never() -> bool:
    return False
