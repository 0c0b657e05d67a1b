"""What layers see while a model trains: their inputs, and the gradients with respect to their outputs."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secondlook.curvature.layers import Layer
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


class Alike(NamedTuple):
    """Layers whose gradient matrices have one shape: one batched product serves them all."""

    layers: list[Layer]
    biased: bool  # their biases are stepped, too

    def gradients(self) -> Tensor:
        """Gradients of the weights [k, out, in], with a last column where there are biases: zeros unless `biased`."""
        W = torch.stack([layer.weight.grad.flatten(1) for layer in self.layers])
        if self.layers[0].bias is None:
            return W
        bias = torch.stack([layer.bias.grad for layer in self.layers]) if self.biased else W.new_zeros(W.shape[:2])
        return torch.cat([W, bias.unsqueeze(-1)], -1)

    def states(self, optimizer: Base) -> list[dict[str, Any]]:
        """The optimizer's states of the weights."""
        return [optimizer.state[layer.weight] for layer in self.layers]

    def state(self, optimizer: Base, key: str) -> Tensor:
        """What those states have under `key`, stacked."""
        return optimizer.stacks.gather(self.states(optimizer), key)

    def by_parameter(self, matrices: Tensor) -> dict[nn.Parameter, Tensor]:
        """What matrices [k, out, in (+ 1)] say of each weight and, where `biased`, bias."""
        weights = [layer.weight for layer in self.layers]
        columns = weights[0].shape[1:].numel()
        shapes = matrices[..., :columns].contiguous().unbind()
        found = {w: m.view(w.shape) for w, m in zip(weights, shapes, strict=True)}
        if self.biased:
            last = matrices[..., -1].contiguous().unbind()
            found |= {layer.bias: b for layer, b in zip(self.layers, last, strict=True)}
        return found


def alike(layers: Iterable[Layer], stepped: Container[nn.Parameter]) -> list[Alike]:
    """Layers by the shape of their gradient matrix; `stepped` has the parameters that are."""
    found: dict[Any, Alike] = {}
    for layer in layers:
        W, biased = layer.weight, layer.bias in stepped
        kind = (W.shape, layer.bias is None, biased, W.dtype, W.device)
        found.setdefault(kind, Alike([], biased)).layers.append(layer)
    return list(found.values())


def _never() -> bool:
    return False
