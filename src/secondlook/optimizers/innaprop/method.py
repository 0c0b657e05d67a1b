"""INNAprop: inertial Newton dynamics with RMSprop's scaling (Bolte et al. 2024, arXiv:2410.05871).

A ball that rolls down F with friction alpha, and with a second friction beta times the change of the gradient along
its path, feels the Hessian without any Hessian being computed:

    x'' + alpha x' + beta d/dt grad F(x) + grad F(x) = 0.

An auxiliary psi makes two equations of first order of it, and these are discretised by explicit Euler.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secondlook.optimizers.base import Base, check_range


def euler_step(
    x: Sequence[Tensor], psi: Sequence[Tensor], grads: Sequence[Tensor], lr: float, alpha: float, beta: float
) -> None:
    """One explicit Euler step, in place, of the system of first order; psi = (1 - alpha beta) x is rest.

        psi' = -(psi - (1 - alpha beta) x) / beta,    x' = psi' - beta grad

    The paper writes x's step with the new psi and so divides by beta - lr. Put its psi in, and that cancels: both are
    the same map, and this one has no pole.

    Args:
        x: position, changed.
        psi: auxiliary variable, of x's shapes, changed.
        grads: gradients at x, as they are or scaled.
        lr: step size.
        alpha: viscous damping.
        beta: geometric damping, above 0.
    """
    away = torch._foreach_sub(psi, torch._foreach_mul(x, 1 - alpha * beta))
    torch._foreach_add_(psi, away, alpha=-lr / beta)
    torch._foreach_add_(x, away, alpha=-lr / beta)
    torch._foreach_add_(x, grads, alpha=-lr * beta)


class INNAprop(Base):
    """Euler steps of the inertial Newton system, the gradient divided by the root of its averaged square.

    With v <- sigma v + (1 - sigma) g^2, corrected for its start at 0, one step is

        x   <- (1 - lr weight_decay) x
        psi <- psi - lr/beta (psi - (1 - alpha beta) x)
        x   <- x   - lr/beta (psi_old - (1 - alpha beta) x) - lr beta g / (sqrt(v) + eps).

    Without decay that is momentum whose memory is 1/(lr alpha) steps: of a gradient's total effect lr/alpha, the part
    lr beta comes at once and lr (1 - alpha beta)/alpha later, against it where alpha beta > 1. With alpha beta = 1
    there is no memory: RMSprop with step lr beta. Recommended pairs (alpha, beta): (0.1, 0.9) for a fast start,
    (2, 2) for a better end.

    Args:
        params: parameters, or groups with options of their own.
        lr: step size. The released code must keep it, through all schedules, below beta; this form need not. Left to
            itself the memory dies out while lr alpha < 2.
        alpha: viscous damping, at least 0.
        beta: geometric damping, above 0.
        sigma: decay of the average of squared gradients.
        eps: added to the denominator.
        weight_decay: decoupled, multiplied by lr. psi is not decayed and remembers where x was.
        maximize: ascend instead of descend.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        alpha: float = 0.1,
        beta: float = 0.9,
        sigma: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "alpha": alpha, "beta": beta, "sigma": sigma, "eps": eps}
        super().__init__(params, options | {"weight_decay": weight_decay, "maximize": maximize})

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "alpha", "weight_decay"):
            check_range(name, options[name])
        for name in ("beta", "eps"):
            check_range(name, options[name], low_open=True)
        check_range("sigma", options["sigma"], high=1)

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        lr, alpha, beta, sigma = (float(group[name]) for name in ("lr", "alpha", "beta", "sigma"))
        for p in params:
            if p not in self.state:  # at rest, before the first decay
                self.state[p] = {"step": 0, "psi": p * (1 - alpha * beta), "exp_avg_sq": torch.zeros_like(p)}
            self.state[p]["step"] += 1
        states = [self.state[p] for p in params]
        psi, v = ([s[name] for s in states] for name in ("psi", "exp_avg_sq"))

        torch._foreach_mul_(v, sigma)
        torch._foreach_addcmul_(v, grads, grads, value=1 - sigma)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_div_(denominator, [(1 - sigma ** s["step"]) ** 0.5 for s in states])
        torch._foreach_add_(denominator, group["eps"])
        scaled = torch._foreach_div(grads, denominator)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        euler_step(params, psi, scaled, lr, alpha, beta)
