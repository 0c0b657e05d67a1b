"""SGDP and AdamP: no radial steps on scale-invariant weights (Heo et al. 2020, arXiv:2006.08217).

A weight in front of a normalisation layer acts through its direction alone, so its gradient is tangent to the
sphere, but a sum of old gradients is not: it points outwards, the norm grows, and the steps shrink as seen from the
sphere. Both optimizers look for such weights, where the gradient is orthogonal to the weight, and project there.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vecdot

from secondlook.optimizers.base import Base, check_betas, check_range


def project(w: Tensor, grad: Tensor, update: Tensor, delta: float = 0.1, eps: float = 1e-8) -> tuple[Tensor, Tensor]:
    """Remove the radial part of updates of weights that look scale invariant (Algorithms 1 and 2).

    A weight looks scale invariant when |cos(w, grad)| < delta / sqrt(entries). As in the released code every row must
    pass; if one fails, the weight is tested as a whole. The projection goes by row or as a whole accordingly.

    Args:
        w: weights, `[tensors, rows, entries]`; a row is an output channel.
        grad: their gradients without weight decay, of the same shape.
        update: directions to project, of the same shape.
        delta: threshold on the cosine; 0 projects nothing.
        eps: added to the weight's norm in the projection, and the least norm in the cosine.

    Returns:
        The updates, and for each tensor whether it was projected, `[tensors]`.
    """
    dots = torch.stack([vecdot(w, w), vecdot(grad, grad), vecdot(w, grad), vecdot(w, update)])  # [4, tensors, rows]
    dots = torch.cat([dots, dots.sum(2, keepdim=True)], 2)  # the last column is the tensor as a whole
    norms = dots[:2].sqrt()
    cosine = dots[2].abs() / norms.clamp_min(eps).prod(0)
    by_row = (cosine[:, :-1] < delta / w.shape[2] ** 0.5).all(1, keepdim=True)
    as_whole = cosine[:, -1:] < delta / w[0].numel() ** 0.5
    along = dots[3] / (norms[0] + eps) ** 2
    radial = torch.where(by_row, along[:, :-1], as_whole * along[:, -1:])
    return torch.addcmul(update, w, radial[..., None], value=-1), (by_row | as_whole)[:, 0]


def effective_step(before: Tensor, after: Tensor) -> Tensor:
    """Distance that weights `[..., entries]` move on the unit sphere, `[...]`: all that a scale-invariant loss sees."""
    unit_before, unit_after = (torch.nn.functional.normalize(w, dim=-1) for w in (before, after))
    return (unit_after - unit_before).norm(dim=-1)


def predicted_norm_sq(start: Tensor, momentum_sq: Tensor, lr: float, momentum: float) -> Tensor:
    """Squared norms of scale-invariant weights under momentum, from the norms of p_t = momentum p_{t-1} + g_t alone.

    |w_{t+1}|^2 = |w_t|^2 + lr^2 |p_t|^2 + 2 lr^2 sum_{k<t} momentum^(t-k) |p_k|^2, exact without weight decay because
    every g_t is orthogonal to w_t. With `momentum` 0 it is the growth under plain gradient descent.

    Args:
        start: |w_0|^2, of any shape.
        momentum_sq: |p_t|^2, `[steps, *start.shape]`.

    Returns:
        |w_t|^2 of steps 0 to `steps`, `[steps + 1, *start.shape]`.
    """
    path, older = [start], torch.zeros_like(start)
    for p_sq in momentum_sq:
        path.append(path[-1] + lr**2 * (p_sq + 2 * older))
        older = momentum * (older + p_sq)
    return torch.stack(path)


class _Projected(Base):
    """What SGDP and AdamP share: the projection, decoupled decay that knows of it, and the step."""

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay", "delta", "wd_ratio"):
            check_range(name, options[name])
        check_range("eps", options["eps"], low_open=True)

    def _states(self, params: list[Tensor], *names: str) -> list[dict[str, Any]]:
        for p in params:
            if p not in self.state:
                self.state[p] = {"step": 0, **{name: torch.zeros_like(p) for name in names}}
            self.state[p]["step"] += 1
        return [self.state[p] for p in params]

    def _move(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], updates: list[Tensor], decay: float
    ) -> list[Tensor]:
        """w <- w (1 - decay * [wd_ratio if projected]) - lr * update; returns the updates as they were applied."""
        alike = defaultdict(list)  # equal shapes are projected together
        for i, p in enumerate(params):
            alike[p.shape if p.ndim > 1 else None, p.dtype, p.device].append(i)
        updates = list(updates)
        for (shape, *_), places in alike.items():
            members = [params[i] for i in places]
            if shape is None:  # scales and shifts are never scale invariant
                if decay:
                    torch._foreach_mul_(members, 1 - decay)
                continue
            w, g, u = (torch.stack([ts[i] for i in places]).flatten(2) for ts in (params, grads, updates))
            u, projected = project(w, g, u, group["delta"], group["eps"])
            for i, update in zip(places, u.view(-1, *shape).unbind(), strict=True):
                updates[i] = update
            if decay:
                shrink = decay * (1 + (group["wd_ratio"] - 1) * projected.to(w.dtype))
                torch._foreach_sub_(members, (shrink[:, None, None] * w).view(-1, *shape).unbind())
        torch._foreach_add_(params, updates, alpha=-float(group["lr"]))
        return updates


class SGDP(_Projected):
    """SGD with momentum whose step is tangent on scale-invariant weights (Algorithm 1).

    Args:
        params: parameters, or groups with options of their own. Those with one axis are never projected.
        lr: step size.
        momentum: decay of the sum of gradients, 0 to below 1.
        dampening: the gradient enters that sum times `1 - dampening`, at the first step as well.
        weight_decay: decoupled: weights shrink by `lr * weight_decay / (1 - momentum)` a step.
        nesterov: step along gradient + momentum * sum.
        delta: threshold of the test for scale invariance, see `project`.
        wd_ratio: factor on the decay of projected weights.
        eps: see `project`.
        project_buffer: keep the projected sum as the momentum, as the released code does without `nesterov`;
            printed is the sum as it is. No effect with `nesterov`.
        maximize: ascend instead of descend.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        eps: float = 1e-8,
        project_buffer: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        options |= {"nesterov": nesterov, "delta": delta, "wd_ratio": wd_ratio, "eps": eps}
        super().__init__(params, options | {"project_buffer": project_buffer, "maximize": maximize})

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        check_range("momentum", options["momentum"], high=1)
        check_range("dampening", options["dampening"], high=1, high_open=False)

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        mu = group["momentum"]
        buffers = [s["momentum_buffer"] for s in self._states(params, "momentum_buffer")]
        torch._foreach_mul_(buffers, mu)
        torch._foreach_add_(buffers, grads, alpha=1 - group["dampening"])
        updates = torch._foreach_add(grads, buffers, alpha=mu) if group["nesterov"] else buffers
        updates = self._move(group, params, grads, updates, float(group["lr"]) * group["weight_decay"] / (1 - mu))
        if group["project_buffer"] and not group["nesterov"]:
            torch._foreach_copy_(buffers, updates)


class AdamP(_Projected):
    """Adam with decoupled decay whose step is tangent on scale-invariant weights (Algorithm 2).

    Args:
        params: parameters, or groups with options of their own. Those with one axis are never projected.
        lr: step size.
        betas: decay of the averages of the gradient and of its square.
        eps: added to the denominator; also see `project`.
        weight_decay: decoupled, multiplied by lr.
        delta: threshold of the test for scale invariance, see `project`; 0 is AdamW.
        wd_ratio: factor on the decay of projected weights.
        nesterov: put beta1 * average + (1 - beta1) * gradient in the average's place.
        maximize: ascend instead of descend.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        options |= {"delta": delta, "wd_ratio": wd_ratio, "nesterov": nesterov, "maximize": maximize}
        super().__init__(params, options)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        check_betas(options["betas"])

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        states = self._states(params, "exp_avg", "exp_avg_sq")
        m, v = ([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, value=1 - beta2)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_div_(denominator, [(1 - beta2 ** s["step"]) ** 0.5 for s in states])
        torch._foreach_add_(denominator, group["eps"])
        updates = torch._foreach_div(torch._foreach_lerp(m, grads, 1 - beta1) if group["nesterov"] else m, denominator)
        torch._foreach_div_(updates, [1 - beta1 ** s["step"] for s in states])
        self._move(group, params, grads, updates, float(group["lr"]) * group["weight_decay"])
