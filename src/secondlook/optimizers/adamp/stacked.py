"""Networks of one shape in one batched pass, each with its own weights: a few small ones take little more than one."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap


class Stacked:
    """Networks that keep to themselves, `n` of them.

    Attributes:
        base: the first one, whose layers all of them go through.
        weights: the weights of all by name, `[n, ...]`.
        parts: for each network, views of its own weights, which an optimizer may step.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.base = networks[0]
        self.weights, self.buffers = stack_module_state(list(networks))
        self.parts = [[w[i].detach().requires_grad_() for w in self.weights.values()] for i in range(len(networks))]

    def __call__(self, x: Tensor, shared: bool = False) -> Tensor:
        """Outputs `[n, B, ...]` for each network's own inputs `[n, B, ...]`, or for `shared` ones `[B, ...]`."""
        run = vmap(partial(functional_call, self.base), in_dims=(0, None if shared else 0))
        return run((self.weights, self.buffers), x)

    def set_gradients(self, losses: Tensor) -> None:
        """Give all weights, and the views of them, the gradients of their own networks' losses `[n]`."""
        found = torch.autograd.grad(losses.sum(), list(self.weights.values()))
        for w, gradient in zip(self.weights.values(), found, strict=True):
            w.grad = gradient
        for part, gradients in zip(self.parts, zip(*(g.unbind() for g in found), strict=True), strict=True):
            for view, gradient in zip(part, gradients, strict=True):
                view.grad = gradient

    def finite(self) -> Tensor:
        """Which networks have finite weights only, `[n]`."""
        return torch.stack([w.detach().flatten(1).isfinite().all(1) for w in self.weights.values()]).all(0)

    @torch.no_grad()
    def scores(self, x: Tensor, batch_size: int = 2048) -> Tensor:
        """Outputs `[n, N, classes]` for shared inputs, in evaluation mode."""
        self.base.eval()
        out = torch.cat([self(some, shared=True) for some in x.split(batch_size)], 1)
        self.base.train()
        return out


def cross_entropies(scores: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy `[n]` of scores `[n, B, classes]` to classes `[n, B]`."""
    return nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)
