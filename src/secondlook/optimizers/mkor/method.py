r"""MKOR: Kronecker factors whose inverses are kept by rank-one updates (Mozaffari et al. 2023, arXiv:2306.01685).

K-FAC preconditions a layer's gradient matrix G (rows: outputs; columns: inputs and, last, the bias) from both sides,

    D = L^{-1} G R^{-1},   L = average of E[g g^T],   R = average of E[a a^T],

g the gradients of the layer's outputs and a its inputs. MKOR replaces the second moments by outer products of *means*,
so that each inverse follows by a formula of rank one, O(d^2) instead of O(d^3). D is then given the norm of G, and a
first-order optimizer takes a step along it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secondlook.curvature.layers import Layer, factorable, layer_inputs, layer_outputs
from secondlook.optimizers.base import check_count, check_range
from secondlook.optimizers.capture import Alike, LayerOptimizer, Use, alike

Rule = Literal["exact", "printed", "package"]
RULES = ("exact", "printed", "package")
BASES = ("sgd", "adam", "lamb")
CLIP = 100.0  # released: entries of a sample's vectors are clamped to +-CLIP
BETA2, EPS = 0.999, 1e-8  # of the Adam and LAMB steps


def rank1_inverse_update(inverse: Tensor, v: Tensor, gamma: float, rule: Rule = "exact") -> Tensor:
    r"""Inverse of a factor after it has seen the vector `v`. With u = inverse v and q = v . u:

        exact    inverse / gamma - (1 - gamma) / (gamma^2 (1 + (1 - gamma) q / gamma)) u u^T
                 the inverse of gamma L + (1 - gamma) v v^T (Sherman and Morrison)
        printed  gamma inverse + (1 - gamma) / (gamma^2 (1 + gamma (1 - gamma) q)) u u^T
                 Algorithm 1, lines 7 and 8; grows along v
        package  P - P v v^T P / (1 + v . P v),  P = gamma inverse + (1 - gamma) I
                 the released code, where gamma is 0.95; the inverse of P^{-1} + v v^T

    Args:
        inverse: inverse L^{-1} of the factor so far, symmetric, [d, d].
        v: the vector, [d].
        gamma: weight of the past, in (0, 1].
        rule: "exact", "printed" or "package".

    Raises:
        ValueError: `gamma` or `rule` is none of these, or the shapes do not fit.
    """
    check_range("gamma", gamma, 0, 1, low_open=True, high_open=False)
    if inverse.shape != (len(v), len(v)):
        raise ValueError(f"inverse must be [d, d] for v of [d], got {tuple(inverse.shape)} and {tuple(v.shape)}")
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, got {rule!r}")
    if rule == "package":
        inverse = gamma * inverse
        inverse.diagonal().add_(1 - gamma)
    u = inverse @ v
    q, new = v @ u, 1 - gamma
    past, sign, weight = {
        "exact": (1 / gamma, -1, new / (gamma**2 + gamma * new * q)),
        "printed": (gamma, 1, new / (gamma**2 * (1 + gamma * new * q))),
        "package": (1, -1, 1 / (1 + q)),
    }[rule]
    u = u * weight.sqrt()  # symmetric to the last bit: what is not would grow by 1 / gamma an update
    return torch.addr(inverse, u, u, beta=past, alpha=sign)


def mean_vectors(layer: Layer, use: Use) -> tuple[Tensor, Tensor]:
    """Batch means (a [in (+ 1)], g [out]) of a layer's inputs and of the output gradients of each sample's own loss.

    The loss is a mean, so a sample's gradient is the hook's times their number. A convolution's patches are averaged
    over positions first; further axes of a linear layer count as samples.
    """
    a, d = layer_inputs(layer, use.inputs), layer_outputs(layer, use.grad_outputs)
    a, d = (x.mean(1) if isinstance(layer, nn.Conv2d) else x.flatten(0, 1) for x in (a, d))
    return a.clamp(-CLIP, CLIP).mean(0), (len(d) * d).clamp_(-CLIP, CLIP).mean(0)


class MKOR(LayerOptimizer):
    """First-order steps on gradients that rank-one Kronecker inverses precondition.

    Linear and ungrouped Conv2d layers whose weight is trained are preconditioned; all other parameters go to the base
    as they are. Hooks show the layers' inputs and output gradients at the steps that refresh the factors. The loop is
    the usual one: forward, `loss.backward()` of a mean loss, `step()`. `remove()` takes the hooks off. The hybrid
    MKOR-H is done by hand, as in the released code: set a group's "precondition" to False, and the base goes on alone.
    `directions` has the last step's preconditioned gradients by parameter.

    Args:
        model: the model that is trained.
        base: "sgd" (heavy ball), "adam" or "lamb".
        lr: step size of the base.
        momentum: decay of the averaged gradient in the base.
        gamma: weight of the past in the factors.
        every: steps between refreshes.
        rule: of the inverse, see `rank1_inverse_update`. "package" also ignores the vectors of the first step, resets
            to the identity instead of pulling towards it, and adds the norms of weight and bias where it rescales.
        stabiliser: share of the identity, 1 - zeta, that is mixed into an inverse beyond the threshold.
        threshold: largest entry at which an inverse is left alone.
        rescale: give the preconditioned gradient of a layer the norm of its gradient.
        warmup: first steps, all of which refresh.
        params: parameters of the model, or groups with options of their own; by default all that take gradients.
        maximize: ascend instead of descend.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        base: Literal["sgd", "adam", "lamb"] = "sgd",
        lr: float = 0.1,
        momentum: float = 0.9,
        gamma: float = 0.95,
        every: int = 10,
        rule: Rule = "exact",
        stabiliser: float = 0.1,
        threshold: float = 2.0,
        rescale: bool = True,
        *,
        warmup: int = 0,
        params: Any = None,
        maximize: bool = False,
    ) -> None:
        for name, value, choices in (("base", base, BASES), ("rule", rule, RULES)):
            if value not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {value!r}")
        check_range("gamma", gamma, 0, 1, low_open=True, high_open=False)
        check_range("stabiliser", stabiliser, 0, 1, high_open=False)
        check_range("threshold", threshold, low_open=True, high_open=False)
        check_count("every", every)
        check_count("warmup", warmup, least=0)
        self.base, self.gamma, self.every, self.rule, self.warmup = base, gamma, every, rule, warmup
        self.stabiliser, self.threshold, self.rescale = stabiliser, threshold, rescale
        if params is None:
            params = [p for p in model.parameters() if p.requires_grad]
        options = {"lr": lr, "momentum": momentum, "precondition": True, "maximize": maximize, "steps": 0}
        super().__init__(params, options)
        self.directions: dict[Tensor, Tensor] = {}
        self._watch(factorable(model))

    def _check(self, options: dict[str, Any]) -> None:
        check_range("lr", options["lr"])
        check_range("momentum", options["momentum"], high=1)

    @property
    def due(self) -> bool:
        """Whether the next step refreshes the factors."""
        group = self.param_groups[0]
        return group["precondition"] and (group["steps"] % self.every == 0 or group["steps"] < self.warmup)

    def _begin(self, closure: Callable[[], Any] | None) -> tuple[Any, list[Tensor]]:
        begun = super()._begin(closure)
        ours = {p for group in self.param_groups if group["precondition"] for p in group["params"]}
        for name, uses in self._hooks.take().items():
            for use in uses if self.layers[name].weight in ours else ():
                self._refresh(self.layers[name], use)
        self.directions = {}
        ours = {p for p in ours if p.grad is not None}
        factored = [m for m in self.layers.values() if m.weight in ours and "left" in self.state[m.weight]]
        for kind in alike(factored, ours):
            self.directions |= kind.by_parameter(self._preconditioned(kind))
        return begun

    def _refresh(self, layer: Layer, use: Use) -> None:
        """Update both inverses of a layer; the first time they are made, of identities."""
        state = self.state[layer.weight]
        fresh = "left" not in state
        for key, v in zip(("right", "left"), mean_vectors(layer, use), strict=True):
            eye = torch.eye(len(v), dtype=layer.weight.dtype, device=v.device)
            inverse = eye if fresh else state[key]
            share = 1.0 if self.rule == "package" else self.stabiliser
            inverse = torch.where(inverse.abs().max() > self.threshold, torch.lerp(inverse, eye, share), inverse)
            skip = fresh and self.rule == "package"
            state[key] = inverse if skip else rank1_inverse_update(inverse, v.to(eye.dtype), self.gamma, self.rule)

    def _preconditioned(self, kind: Alike) -> Tensor:
        """Directions [k, out, in (+ 1)] of layers of one shape."""
        W = kind.gradients()
        solved = kind.state(self, "left") @ W @ kind.state(self, "right")
        if not self.rescale:
            return solved
        # The released code adds the norms of weight and bias.
        ends = [kind.layers[0].weight.shape[1:].numel()] if self.rule == "package" else []
        old, new = (
            sum(torch.linalg.vector_norm(part, dim=(1, 2)) for part in m.tensor_split(ends, 2)) for m in (W, solved)
        )
        return solved * torch.where(new > 0, old / new, 1.0)[:, None, None]

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        sign = -1 if group["maximize"] else 1
        grads = [sign * self.directions[p] if p in self.directions else g for p, g in zip(params, grads, strict=True)]
        for p in params:
            if "exp_avg" not in self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                if self.base != "sgd":
                    self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        m, beta, lr = [self.state[p]["exp_avg"] for p in params], group["momentum"], float(group["lr"])
        group["steps"] += 1
        torch._foreach_mul_(m, beta)
        if self.base == "sgd":
            torch._foreach_add_(m, grads)
            torch._foreach_add_(params, m, alpha=-lr)
            return
        torch._foreach_add_(m, grads, alpha=1 - beta)
        v = [self.state[p]["exp_avg_sq"] for p in params]
        torch._foreach_mul_(v, BETA2)
        torch._foreach_addcmul_(v, grads, grads, 1 - BETA2)
        root = torch._foreach_sqrt(torch._foreach_div(v, 1 - BETA2 ** group["steps"]))
        torch._foreach_add_(root, EPS)
        step = torch._foreach_div(torch._foreach_div(m, 1 - beta ** group["steps"]), root)
        if self.base == "lamb":  # as long as the weights, layer by layer
            lengths = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(step))
            trust = torch.where((lengths[0] > 0) & (lengths[1] > 0), lengths[0] / lengths[1], 1.0)
            torch._foreach_mul_(step, list(trust.unbind()))
        torch._foreach_add_(params, step, alpha=-lr)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.directions = {}
