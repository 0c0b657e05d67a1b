"""AuON, its hybrid and Muon: steps along averaged gradients, rescaled or made orthogonal (arXiv:2509.24320).

Muon replaces the averaged gradient of a matrix by a nearly orthogonal matrix with the same singular vectors, at the
price of some matrix products. AuON divides by a single number instead, the root mean square r of cosh of the scaled
entries. By cosh^2 = 1 + sinh^2 and since the squares of the scaled entries add up to gamma^2,

    1 < r <= sqrt(1 + sinh(gamma)^2 / entries).
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from secondlook.optimizers.base import Base, check_count, check_range

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of the odd polynomial a s + b s^3 + c s^5 that one Newton-Schulz step applies to each s."""

ADJUSTMENTS = ("none", "original", "match_rms_adamw")


def cosh_rms(x: Tensor) -> Tensor:
    """Root mean square of cosh(x) over all entries, 0-d: sqrt(1 + mean sinh(x)^2)."""
    return x.cosh().square().mean().sqrt()


def newton_schulz5(G: Tensor, steps: int = 5) -> Tensor:
    """Bring all singular values of matrices `[..., rows, cols]` near 1 and leave their singular vectors alone.

    X <- a X + (b A + c A A) X with A = X X', from G over its Frobenius norm. The values end between about 0.7 and 1.2,
    not at 1, and the least ones (below 0.002 of the norm, for five steps) are not there yet.
    """
    a, b, c = QUINTIC
    tall = G.shape[-2] > G.shape[-1]
    X = (G.mT if tall else G).reshape(-1, min(G.shape[-2:]), max(G.shape[-2:]))
    X = X / (torch.linalg.matrix_norm(X, keepdim=True) + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return (X.mT if tall else X).reshape(G.shape)


def orthogonalised(updates: list[Tensor], steps: int) -> list[Tensor]:
    """`newton_schulz5` of all with two axes or more, a kernel as the matrix (out, rest); equal shapes go together."""
    alike = defaultdict(list)
    for i, u in enumerate(updates):
        if u.ndim > 1:
            alike[u.shape, u.dtype, u.device].append(i)
    found = list(updates)
    for (shape, *_), places in alike.items():
        batch = newton_schulz5(torch.stack([updates[i] for i in places]).flatten(2), steps)
        for i, matrix in zip(places, batch.view(-1, *shape).unbind(), strict=True):
            found[i] = matrix
    return found


class _Momentum(Base):
    """What AuON and Muon share: w <- (1 - lr * weight_decay) w - lr * factor * direction(u), u the Nesterov blend."""

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay"):
            check_range(name, options[name])
        check_range("momentum", options["momentum"], high=1)
        check_count("ns_steps", options["ns_steps"])

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        lr, mu = float(group["lr"]), group["momentum"]
        for p in params:
            if p not in self.state:
                self.state[p] = {"momentum_buffer": torch.zeros_like(p)}
        m = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(m, grads, 1 - mu)
        steps = self._directions(group, torch._foreach_lerp(grads, m, mu))  # Nesterov: (1 - mu) g + mu m
        factors = [self._factor(group, p) for p in params]
        if any(f != 1 for f in factors):
            steps = torch._foreach_mul(steps, factors)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(params, steps, alpha=-lr)

    def _directions(self, group: dict[str, Any], updates: list[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    def _factor(self, group: dict[str, Any], p: Tensor) -> float:
        raise NotImplementedError


class AuON(_Momentum):
    """Momentum over the root mean square of its hyperbolic cosine.

    With m <- momentum * m + (1 - momentum) * g, u = momentum * m + (1 - momentum) * g and
    r = cosh_rms(gamma * u / |u|), the direction is

        u / r              as released (default),
        u / (|u| r)        as printed in the first version, which has gamma 1: `normalise=True, gamma=1, aspect=True`,
        X / r, r from X    for the hybrid, X = newton_schulz5(u): `hybrid=True`.

    Tensors of any number of axes are taken as they are, with one r each. The released hybrid orthogonalises every slice
    of a convolution's kernel; here the kernel is one matrix (out, rest). The paper's script gives vectors, embeddings
    and the output layer to Adam: see `Together`.

    Args:
        params: parameters, or groups with options of their own.
        lr: step size.
        momentum: decay of the averaged gradient, 0 to below 1.
        weight_decay: decoupled, multiplied by lr.
        gamma: norm of what goes through cosh. With 0, r is 1 and what is left is momentum (Muon, for the hybrid).
        normalise: divide by the Frobenius norm as well.
        hybrid: Newton-Schulz steps first, for tensors with two axes or more.
        ns_steps: how many of them; 5 as released, 1 in the abstract.
        aspect: multiply the step of a matrix by sqrt(max(1, rows / cols)).
        maximize: ascend instead of descend.

    Raises:
        ValueError: an option is out of range, or `normalise` and `hybrid` are both set.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.24,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        gamma: float = 1.5,
        normalise: bool = False,
        hybrid: bool = False,
        ns_steps: int = 5,
        aspect: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "gamma": gamma, "maximize": maximize}
        options |= {"normalise": normalise, "hybrid": hybrid, "ns_steps": ns_steps, "aspect": aspect}
        super().__init__(params, options)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        check_range("gamma", options["gamma"], high=40)  # the square of cosh overflows in float32 above
        if options["normalise"] and options["hybrid"]:
            raise ValueError("normalise and hybrid are two forms of the update: set one of them")

    def _directions(self, group: dict[str, Any], updates: list[Tensor]) -> list[Tensor]:
        if group["hybrid"]:
            updates = orthogonalised(updates, group["ns_steps"])
        norms = torch._foreach_add(torch._foreach_norm(updates), 1e-7)
        cosh = torch._foreach_div(updates, norms)
        torch._foreach_mul_(cosh, group["gamma"])
        torch._foreach_cosh_(cosh)
        r = torch._foreach_div(torch._foreach_norm(cosh), [max(u.numel(), 1) ** 0.5 for u in updates])
        torch._foreach_add_(r, 1e-8)
        if group["normalise"]:
            torch._foreach_mul_(r, norms)
        return torch._foreach_div(updates, r)

    def _factor(self, group: dict[str, Any], p: Tensor) -> float:
        return _adjustment("original" if group["aspect"] else "none", p)


class Muon(_Momentum):
    """Momentum made nearly orthogonal by Newton-Schulz steps (K. Jordan et al. 2024), the baseline.

    A parameter with two axes or more is a matrix (out, rest). One with fewer steps along its momentum; it is usual to
    give these, embeddings and the output layer to Adam, see `Together`. Runs in the parameters' own precision, where
    `torch.optim.Muon` always uses bfloat16.

    Args:
        params: parameters, or groups with options of their own.
        lr: step size.
        momentum: decay of the averaged gradient, 0 to below 1; the step uses the Nesterov blend as in `AuON`.
        weight_decay: decoupled, multiplied by lr.
        ns_steps: Newton-Schulz steps.
        adjust_lr_fn: factor on a matrix's step, by the names of `torch.optim.Muon`: "original" is
            sqrt(max(1, rows / cols)), "match_rms_adamw" is 0.2 sqrt(max(rows, cols)), "none" is 1.
        maximize: ascend instead of descend.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        adjust_lr_fn: str = "original",
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "ns_steps": ns_steps}
        super().__init__(params, options | {"adjust_lr_fn": adjust_lr_fn, "maximize": maximize})

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        if options["adjust_lr_fn"] not in ADJUSTMENTS:
            raise ValueError(f"adjust_lr_fn must be one of {', '.join(ADJUSTMENTS)}, got {options['adjust_lr_fn']!r}")

    def _directions(self, group: dict[str, Any], updates: list[Tensor]) -> list[Tensor]:
        return orthogonalised(updates, group["ns_steps"])

    def _factor(self, group: dict[str, Any], p: Tensor) -> float:
        return _adjustment(group["adjust_lr_fn"], p)


def _adjustment(name: str, p: Tensor) -> float:
    if name == "none" or p.ndim < 2:
        return 1.0
    rows, cols = p.shape[0], p[0].numel()
    return max(1, rows / cols) ** 0.5 if name == "original" else 0.2 * max(rows, cols) ** 0.5
