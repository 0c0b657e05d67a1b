"""FISMO: the steepest step in a spectral norm that a Kronecker-factored Fisher matrix whitens (arXiv:2601.21750).

Muon's exact step D = U V' maximises <G, D> over |D|_2 <= 1, and treats all directions of rows and columns alike. With
the Fisher matrix of a weight [m, n] modelled as a Kronecker product of P [m, m] and Q [n, n], FISMO maximises it over

    |P^(1/2) D Q^(1/2)|_2 <= 1,   whose solution is   D = P^(-1/2) Polar(P^(-1/2) G Q^(-1/2)) Q^(-1/2).

With P = Q = I this is Muon. The momentum in G's place is averaged in the whitened space.
"""

from collections import defaultdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from secondlook.optimizers.auon.method import newton_schulz5
from secondlook.optimizers.base import Base, check_count, check_range
from secondlook.optimizers.factor import cholesky

POLARS = ("svd", "ns5")


def polar_factor(M: Tensor, method: str = "svd") -> Tensor:
    """U V' for matrices M = U S V' `[..., m, n]`; null directions, and so zero matrices, are left out.

    Args:
        M: matrices, float32 or float64.
        method: "svd", exact, or "ns5", five Newton-Schulz steps as in Muon: singular values of about 0.7 to 1.2.

    Raises:
        ValueError: no such method.
    """
    if method not in POLARS:
        raise ValueError(f"polar must be one of {', '.join(POLARS)}, got {method!r}")
    if method == "ns5":
        return newton_schulz5(M)
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    keep = s > s[..., :1] * max(M.shape[-2:]) * torch.finfo(M.dtype).eps
    return (U * keep[..., None, :]) @ Vh


def kron_fisher_update(
    P: Tensor, Q: Tensor, G: Tensor, gamma: float, mu: float, *, relative: bool = False
) -> tuple[Tensor, Tensor]:
    """The factors after one more gradient, each scaled to the trace of the identity.

        P <- m / tr(.) (gamma P + (1 - gamma) (G Q^(-1) G' / n + mu tr(P) / m I)),
        Q <- n / tr(.) (gamma Q + (1 - gamma) (G' P^(-1) G / m + mu tr(Q) / n I))   with the new P.

    At rest P = E[G Q^(-1) G'] / n and Q = E[G' P^(-1) G] / m up to damping and scale. But as the old factor comes with
    its full trace, small gradients hardly count: with s the mean diagonal of the new term, it weighs
    (1 - gamma) s / (gamma + (1 - gamma) s), and rest is about 1 / s times as far as gamma says.

    Args:
        P, Q: `[..., m, m]` and `[..., n, n]`, positive definite.
        G: gradients `[..., m, n]`.
        gamma: decay of the averages.
        mu: damping relative to the mean diagonal of the factor, which is 1; not relative to the gradients.
        relative: scale G Q^(-1) G' and G' P^(-1) G to the trace of the identity, too. Not the paper's: nothing depends
            on the gradients' scale then, the memory is that of gamma, and mu is relative to the gradients.
    """
    P = _averaged(P, G, Q, gamma, mu, relative)
    return P, _averaged(Q, G.mT, P, gamma, mu, relative)


def _averaged(A: Tensor, G: Tensor, B: Tensor, gamma: float, mu: float, relative: bool) -> Tensor:
    """One factor A `[..., k, k]` after G `[..., k, l]`, seen through the other factor B `[..., l, l]`."""
    k, l = G.shape[-2:]
    white = torch.linalg.solve_triangular(cholesky(B + _rounding(B)), G.mT, upper=False)
    seen = white.mT @ white / l
    if relative:
        seen = seen * (k / _trace(seen).clamp_min(torch.finfo(A.dtype).tiny * k))
    seen.diagonal(dim1=-2, dim2=-1).add_((mu * _trace(A) / k).squeeze(-1))
    A = seen.mul_(1 - gamma).add_(gamma * A)
    A.mul_(k / _trace(A))
    return (A + A.mT).mul_(0.5)


def inverse_root(A: Tensor) -> Tensor:
    """A^(-1/2) of positive definite matrices `[..., k, k]` of mean eigenvalue 1."""
    values, V = torch.linalg.eigh(A)
    floor = A.shape[-1] * torch.finfo(A.dtype).eps
    return (V * values.clamp_min(floor).rsqrt()[..., None, :]) @ V.mT


def _eye(A: Tensor) -> Tensor:
    return torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)


def _rounding(A: Tensor) -> Tensor:
    """What keeps a factor of mean eigenvalue 1 positive definite in its own precision."""
    return A.shape[-1] * torch.finfo(A.dtype).eps * _eye(A)


def _trace(A: Tensor) -> Tensor:
    return A.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


class FISMO(Base):
    """Polar factor of the whitened momentum, mapped back.

    For a gradient G [m, n], from P = Q = I and M = 0 on: P, Q by `kron_fisher_update`, then

        M <- beta M + (1 - beta) P^(-1/2) G Q^(-1/2),
        W <- (1 - lr weight_decay) W - lr P^(-1/2) Polar(M) Q^(-1/2).

    A parameter with more than two axes is a matrix (out, rest). One with fewer steps along its averaged gradient; the
    paper gives these to AdamW, see `secondlook.optimizers.auon.Together`. Neither damping nor memory follow the
    gradients' scale: where their mean square is far below 1, P and Q stay near I, and the step is Muon's.

    Args:
        params: parameters, or groups with options of their own; float32 or float64.
        lr: step size, the largest singular value of a step in the metric.
        beta: decay of the whitened momentum, 0 to below 1.
        gamma: decay of the factors, 0 to below 1.
        damping: mu, above 0.
        every: steps between refreshes of the roots, from the first step on. P and Q change at each.
        polar: "svd" or "ns5", see `polar_factor`.
        weight_decay: decoupled, multiplied by lr.
        relative: factors that do not depend on the gradients' scale, see `kron_fisher_update`; not the paper's.
        maximize: ascend instead of descend.

    Raises:
        ValueError: an option is out of range, or a parameter is of another type.
    """

    full_precision = True

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        beta: float = 0.95,
        gamma: float = 0.95,
        damping: float = 1e-2,
        every: int = 1,
        polar: str = "svd",
        weight_decay: float = 0.0,
        relative: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "beta": beta, "gamma": gamma, "damping": damping, "every": every, "polar": polar}
        options |= {"weight_decay": weight_decay, "relative": relative, "maximize": maximize}
        super().__init__(params, options)

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay"):
            check_range(name, options[name])
        for name in ("beta", "gamma"):
            check_range(name, options[name], high=1)
        check_range("damping", options["damping"], low_open=True)
        check_count("every", options["every"])
        if options["polar"] not in POLARS:
            raise ValueError(f"polar must be one of {', '.join(POLARS)}, got {options['polar']!r}")

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        steps, alike = list(grads), defaultdict(list)
        for i, p in enumerate(params):
            state = self._state(p)
            if "P" in state:
                due = state["step"] % group["every"] == 0
                alike[p.shape, p.dtype, p.device, due].append(i)
            else:
                steps[i] = state["momentum"].lerp_(grads[i], 1 - group["beta"])
            state["step"] += 1
        for (shape, *_, due), places in alike.items():
            states = [self.state[params[i]] for i in places]
            found = self._directions(group, states, torch.stack([grads[i] for i in places]).flatten(2), due)
            for i, step in zip(places, found.view(-1, *shape).unbind(), strict=True):
                steps[i] = step
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - float(group["lr"]) * group["weight_decay"])
        torch._foreach_add_(params, steps, alpha=-float(group["lr"]))

    def _state(self, p: Tensor) -> dict[str, Any]:
        if p not in self.state:
            state = self.state[p] = {"step": 0, "momentum": torch.zeros_like(p)}
            if p.ndim > 1:
                state["momentum"] = state["momentum"].flatten(1)
                for factor, root, axis in (("P", "P_root", 0), ("Q", "Q_root", 1)):
                    state[factor] = torch.eye(state["momentum"].shape[axis], dtype=p.dtype, device=p.device)
                    state[root] = state[factor].clone()  # its inverse root
        return self.state[p]

    def _directions(self, group: dict[str, Any], states: list[dict[str, Any]], G: Tensor, due: bool) -> Tensor:
        """What to subtract at learning rate 1 for gradients `[k, m, n]`, all of one shape."""
        gather, keep = (partial(call, states) for call in (self.stacks.gather, self.stacks.keep))
        averaging = {"gamma": group["gamma"], "mu": group["damping"], "relative": group["relative"]}
        P, Q = kron_fisher_update(gather("P"), gather("Q"), G, **averaging)
        keep("P", P)
        keep("Q", Q)
        if due:
            keep("P_root", inverse_root(P))
            keep("Q_root", inverse_root(Q))
        left, right = gather("P_root"), gather("Q_root")
        M = gather("momentum").lerp(left @ G @ right, 1 - group["beta"])
        keep("momentum", M)
        return left @ polar_factor(M, group["polar"]) @ right
