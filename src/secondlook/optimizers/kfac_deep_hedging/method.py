r"""K-FAC: steps along the gradient over a Kronecker-factored curvature (Martens and Grosse 2015, arXiv:1503.05671).

Each layer's curvature is A (x) G, with A the second moment of what comes in and G that of the gradients that come back.
A layer's uses at many time steps, or positions, are taken as independent: A is their mean, G their sum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secondlook.curvature import pack
from secondlook.curvature.layers import Layer, factorable, layer_inputs, layer_outputs
from secondlook.optimizers.base import check_count, check_range
from secondlook.optimizers.capture import Alike, LayerOptimizer, Use, alike
from secondlook.optimizers.factor import cholesky


class KFAC(LayerOptimizer):
    r"""Natural gradient with Kronecker factors from the loss's own gradients, for linear and convolution layers.

    With W the gradient [out, in] of a layer, inputs a_t (with a 1 for the bias) and output gradients s_t of an example,

        A = E[1/T sum_t a_t a_t^T],  G = E[sum_t s_t s_t^T]
        U = (G + sqrt(damping) / pi I)^-1 W (A + pi sqrt(damping) I)^-1,  pi^2 = (tr A / dim A) / (tr G / dim G)

    U is shortened by min(1, sqrt(kl_clip / (lr^2 <U, W>))), summed over layers, and averaged by heavy ball. The s_t are
    those of the loss on the data: an empirical second moment, not the Fisher matrix. Parameters outside such layers
    (and grouped convolutions) take the gradient for U. The training loop needs no change. `remove()` takes the hooks
    off.

    Args:
        model: the model that is trained. The loss must be a mean over the batch, the first axis of what layers get.
        lr: step size.
        damping: see above.
        momentum: of heavy ball.
        every: steps between new inverses; the factors are averaged at every step.
        kl_clip: see above; `inf` for no limit.
        decay: of the factors' exponential averages, which start with the first batch.
        params: parameters of the model, or groups with options of their own; by default all that take gradients.
        maximize: ascend instead of descend.

    Raises:
        ValueError: an option is out of range.
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
        params: Any = None,
        maximize: bool = False,
    ) -> None:
        check_count("every", every)
        check_range("kl_clip", kl_clip, low_open=True, high_open=False)
        self.every, self.kl_clip = every, kl_clip
        if params is None:
            params = [p for p in model.parameters() if p.requires_grad]
        options = {"lr": lr, "damping": damping, "momentum": momentum, "decay": decay}
        super().__init__(params, {**options, "maximize": maximize, "steps": 0})
        self._watch(factorable(model))
        self._updates: dict[Tensor, Tensor] = {}

    def _check(self, options: dict[str, Any]) -> None:
        check_range("lr", options["lr"])
        check_range("damping", options["damping"], low_open=True)
        for name in ("momentum", "decay"):
            check_range(name, options[name], high=1.0)

    def _begin(self, closure: Callable[[], Any] | None) -> tuple[Any, list[Tensor]]:
        loss, present = super()._begin(closure)
        seen, updates = self._hooks.take(), {p: p.grad for p in present}
        for group in self.param_groups:
            ours, used, factored = set(group["params"]), {}, []
            for name, layer in self.layers.items():
                if (weight := layer.weight) in ours:
                    if name in seen:
                        used[layer] = seen[name]
                    if weight in updates and (name in seen or "A" in self.state[weight]):
                        factored.append(layer)
            self._average(used, group["decay"])
            due = group["steps"] % self.every == 0
            for kind in alike([m for m in factored if due or "A_inverse" not in self.state[m.weight]], updates):
                self._invert(kind, group["damping"])
            for kind in alike(factored, updates):
                U = kind.state(self, "G_inverse") @ kind.gradients() @ kind.state(self, "A_inverse")
                updates |= kind.by_parameter(U)
        if not updates:
            return loss, present
        overlap = torch.zeros(())
        for group in self.param_groups:
            if ours := [p for p in group["params"] if p in updates]:
                along = pack([updates[p] for p in ours]) @ pack([p.grad for p in ours])
                overlap = overlap.to(along) + float(group["lr"]) ** 2 * along
        limit = (self.kl_clip / overlap.clamp_min(1e-30)).sqrt().clamp_max(1.0)
        self._updates = dict(zip(updates, torch._foreach_mul(list(updates.values()), limit), strict=True))
        return loss, present

    def _average(self, uses: dict[Layer, list[Use]], decay: float) -> None:
        """Average the batch's factors in, as far as shapes agree for all layers in one product."""
        together = defaultdict(list)
        for layer, its in uses.items():
            a = _rows([layer_inputs(layer, use.inputs, homogeneous=False) for use in its])
            s = _rows([layer_outputs(layer, use.grad_outputs) for use in its])
            state = self.state[layer.weight]
            kind = (a.shape, s.shape, its[0].inputs.shape[0], layer.bias is None, "A" in state)
            together[kind].append((state, a, s))
        for (*_, size, unbiased, known), members in together.items():
            states, inputs, outputs = map(list, zip(*members, strict=True))
            a, s = torch.stack(inputs), torch.stack(outputs)
            a = a if unbiased else F.pad(a, (0, 1), value=1.0)
            fresh = {"A": a.mT @ a / a.shape[1], "G": s.mT @ s * size}  # hooks saw gradients of a mean over `size`
            for name, value in fresh.items():
                if known:
                    value = self.stacks.gather(states, name).lerp_(value, 1 - decay)
                self.stacks.keep(states, name, value)

    def _invert(self, kind: Alike, damping: float) -> None:
        """Damped inverses of both factors, the damping shared out by their average eigenvalues."""
        A, G = (kind.state(self, name) for name in ("A", "G"))
        mean_A, mean_G = (
            M.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(M.dtype).tiny)[:, None, None] for M in (A, G)
        )
        pi = (mean_A / mean_G).sqrt()
        for name, factor, share in (("A_inverse", A, pi * damping**0.5), ("G_inverse", G, damping**0.5 / pi)):
            damped = factor + share * torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
            inverses = torch.cholesky_inverse(cholesky(damped))
            self.stacks.keep(kind.states(self), name, inverses)

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        for p in params:
            if "velocity" not in self.state[p]:
                self.state[p]["velocity"] = torch.zeros_like(p)
        velocity = [self.state[p]["velocity"] for p in params]
        torch._foreach_mul_(velocity, group["momentum"])
        torch._foreach_add_(velocity, [self._updates[p] for p in params])
        torch._foreach_add_(params, velocity, alpha=float(group["lr"]) * (1 if group["maximize"] else -1))
        group["steps"] += 1


def _rows(parts: list[Tensor]) -> Tensor:
    """Tensors `[N, T, n]` of a layer's uses as the rows of one matrix."""
    rows = [part.flatten(0, 1) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows)
