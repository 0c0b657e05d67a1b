r"""K-FAC: steps along the gradient over a Kronecker-factored curvature (Martens and Grosse 2015, arXiv:1503.05671).

Each linear layer's curvature is A (x) G, with A the second moment of what comes in and G that of the gradients that
come back. A layer's uses at many time steps are taken as independent contributions: A is their mean, G their sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from secondlook.curvature.kronecker import to_matrices, to_parameters
from secondlook.optimizers.base import Base, check_count, check_range
from secondlook.optimizers.capture import Capture, Use


class KFAC(Base):
    r"""Natural gradient with Kronecker factors from the loss's own gradients, for all linear layers of a model.

    With W the gradient [out, in] of a layer, inputs a_t (with a 1 for the bias) and output gradients s_t of an example,

        A = E[1/T sum_t a_t a_t^T],  G = E[sum_t s_t s_t^T]
        U = (G + sqrt(damping) / pi I)^-1 W (A + pi sqrt(damping) I)^-1,  pi^2 = (tr A / dim A) / (tr G / dim G)

    U is shortened by min(1, sqrt(kl_clip / (lr^2 <U, W>))), summed over layers, and averaged by heavy ball. The s_t are
    those of the loss on the data: an empirical second moment, not the Fisher matrix. Parameters outside linear layers
    take the gradient for U. The loop needs no change; call `optimizer.capture.remove()` when done with the model.

    Args:
        model: its linear layers are watched, all its parameters are trained. The loss must be a mean over the batch,
            the first axis of what layers are given.
        lr: step size.
        damping: see above.
        momentum: of heavy ball.
        every: steps between new inverses; the factors are averaged at every step.
        kl_clip: see above; `inf` for no limit.
        decay: of the factors' exponential averages, which start with the first batch.

    Raises:
        ValueError: an option is out of range, or the model has no linear layer.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.1,
        damping: float = 0.01,
        momentum: float = 0.9,
        every: int = 10,
        kl_clip: float = 1e-3,
        *,
        decay: float = 0.95,
    ) -> None:
        check_count("every", every)
        self.every = every
        options = {"lr": lr, "damping": damping, "momentum": momentum, "kl_clip": kl_clip, "decay": decay}
        super().__init__(model.parameters(), {**options, "steps": 0})
        self.layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        if not self.layers:
            raise ValueError("model has no nn.Linear layer; write recurrent cells with linear layers")
        self.names = [name for name, p in model.named_parameters()]
        self.capture = Capture(self.layers, wanted=lambda: True)

    def _check(self, options: dict[str, Any]) -> None:
        check_range("lr", options["lr"])
        check_range("damping", options["damping"], low_open=True)
        check_range("kl_clip", options["kl_clip"], low_open=True, high_open=False)
        for name in ("momentum", "decay"):
            check_range(name, options[name], high=1.0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return what the closure, if there is one, returned.

        Raises:
            RuntimeError: a layer or a parameter took no part in the last backward pass.
        """
        loss, present = self._begin(closure)
        group, uses = self.param_groups[0], self.capture.take()
        params = dict(zip(self.names, group["params"], strict=True))
        if len(present) < len(params) or len(uses) < len(self.layers):
            raise RuntimeError(
                "every parameter and linear layer must take part in the loss; leave out those that do not"
            )
        for name, layer in self.layers.items():
            self._average(self.state[layer.weight], uses[name], layer.bias is not None, group["decay"])
            if group["steps"] % self.every == 0:
                _invert(self.state[layer.weight], group["damping"])

        grads = {name: p.grad for name, p in params.items()}
        solved = {
            name: self.state[self.layers[name].weight]["G_inverse"]
            @ W
            @ self.state[self.layers[name].weight]["A_inverse"]
            for name, W in to_matrices(self.layers, grads).items()
        }
        found = grads | to_parameters(self.layers, solved)
        updates = [found[name] for name in params]
        overlap = sum((u * p.grad).sum() for u, p in zip(updates, params.values(), strict=True))
        limit = (group["kl_clip"] / (float(group["lr"]) ** 2 * overlap).clamp_min(1e-30)).sqrt().clamp_max(1.0)
        for p in params.values():
            if "velocity" not in self.state[p]:
                self.state[p]["velocity"] = torch.zeros_like(p)
        velocity = [self.state[p]["velocity"] for p in params.values()]
        torch._foreach_mul_(velocity, group["momentum"])
        torch._foreach_add_(velocity, torch._foreach_mul(updates, limit))
        torch._foreach_add_(group["params"], velocity, alpha=-float(group["lr"]))
        group["steps"] += 1
        return loss

    def _average(self, state: dict[str, Any], uses: list[Use], bias: bool, decay: float) -> None:
        """Average the batch's factors in; hooks saw gradients of a mean, so G takes its size back."""
        a = torch.cat([use.inputs.flatten(0, -2) for use in uses])
        s = torch.cat([use.grad_outputs.flatten(0, -2) for use in uses])
        a = F.pad(a, (0, 1), value=1.0) if bias else a
        fresh = {"A": a.T @ a / len(a), "G": s.T @ s * len(uses[0].inputs)}
        for name, value in fresh.items():
            state[name] = state[name].lerp_(value, 1 - decay) if name in state else value


def _invert(state: dict[str, Any], damping: float) -> None:
    """Damped inverses of both factors, the damping shared out by their average eigenvalues."""
    A, G = state["A"], state["G"]
    tiny = torch.finfo(A.dtype).tiny
    pi = (A.diagonal().mean().clamp_min(tiny) / G.diagonal().mean().clamp_min(tiny)).sqrt()
    for name, factor, share in (("A_inverse", A, pi * damping**0.5), ("G_inverse", G, damping**0.5 / pi)):
        damped = factor + share * torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        state[name] = torch.cholesky_inverse(torch.linalg.cholesky(damped))
