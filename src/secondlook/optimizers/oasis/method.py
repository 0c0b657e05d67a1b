"""OASIS: a scaling and a step length that both adapt themselves (Jahani et al. 2021, arXiv:2109.05198).

The scaling is a running average of z * (H z), an estimate of the Hessian diagonal. The step length comes from how much
the gradient turned over the last step, both measured in the norm of that scaling. `minimize.py` has the same iteration
for a function that comes with its gradient and Hessian products.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from secondlook.optimizers.adahessian.method import hutchinson_diag
from secondlook.optimizers.base import Base, check_count, check_range


def truncate(diagonal: Sequence[Tensor], alpha: float) -> list[Tensor]:
    """The scaling max(|D|, alpha), entry by entry. The sign falls only here, after the averaging."""
    return list(torch._foreach_clamp_min(torch._foreach_abs(diagonal), alpha))


def step_length(
    eta: Tensor, theta: Tensor, moved: Sequence[Tensor], turned: Sequence[Tensor], scale: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The next step length and its growth, min{sqrt(1 + theta) eta, |moved|_D / (2 |turned|_D*)} (Algorithm 1).

    |x|_D^2 = sum D x^2 is the norm of the scaling D and |x|_D*^2 = sum x^2 / D its dual. Where the last step shows
    nothing (no movement, or no turn and no limit on the growth) both are kept.

    Args:
        eta: last step length, 0-d.
        theta: last step length over the one before, 0-d; infinity after the first step.
        moved: w_k - w_{k-1}, one tensor a parameter.
        turned: the gradient at w_k less that at w_{k-1}, of the same function.
        scale: D, positive.
    """
    root = torch._foreach_sqrt(scale)
    span, bend = _norm(torch._foreach_mul(moved, root)), _norm(torch._foreach_div(turned, root))
    return limited(eta, theta, (span / (2 * bend)).to(eta.dtype))


def limited(eta: Tensor, theta: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The step length `wanted`, as far as the last growth allows, and its growth; entry by entry."""
    proposal = torch.minimum((1 + theta).sqrt() * eta, wanted)
    usable = proposal.isfinite() & (proposal > 0)
    return torch.where(usable, proposal, eta), torch.where(usable, proposal / eta, theta)


class OASIS(Base):
    """Gradient steps scaled by the averaged Hessian diagonal, their length found on the way; nothing to tune.

    Needs gradients with a graph (`wants_graph`), and when `stochastic` a closure (`needs_closure`). With D the average
    of z * (H z) and s = max(|D|, alpha), the update is w <- w - lr * eta * g / s. All groups share one eta.

    Args:
        params: parameters, or groups with `beta2`, `alpha` and `lr` of their own.
        beta2: decay of the average of z * (H z).
        alpha: least scaling. Larger than the curvature everywhere, it leaves adaptive gradient descent.
        eta0: the first step length.
        warmup_probes: sign vectors averaged for the first D; afterwards one a step.
        stochastic: take both gradients of the step rule on the same batch. `step(closure)` then calls the closure
            twice, at w_k and at w_{k-1} (layers that count their calls, such as batch norm, see both). Without it
            the last step's gradient is reused, which is right when the loss is always the same function.
        lr: multiplies the step length; 1 is the paper's method, other values serve schedules.
        adaptive: False keeps the length at eta0, the fixed-step variant.
        generator: source of the sign vectors; by default one of its own, seeded with `torch.initial_seed()`.
        maximize: ascend instead of descend.

    Raises:
        ValueError: an option is out of range.
    """

    wants_graph = True

    def __init__(
        self,
        params: Any,
        beta2: float = 0.99,
        alpha: float = 1e-3,
        eta0: float = 1e-3,
        warmup_probes: int = 10,
        stochastic: bool = False,
        *,
        lr: float = 1.0,
        adaptive: bool = True,
        generator: torch.Generator | None = None,
        maximize: bool = False,
    ) -> None:
        check(eta0=eta0)
        check_count("warmup_probes", warmup_probes)
        super().__init__(params, {"beta2": beta2, "alpha": alpha, "lr": lr, "maximize": maximize})
        self.warmup_probes, self.stochastic, self.adaptive = warmup_probes, stochastic, adaptive
        first = self.param_groups[0]["params"][0]
        precision = torch.promote_types(first.dtype, torch.float32)
        self.eta = torch.tensor(eta0, dtype=precision, device=first.device)
        self.theta = torch.full_like(self.eta, float("inf"))
        self.generator = self._own_stream(generator)

    def _check(self, options: dict[str, Any]) -> None:
        check(**{name: options[name] for name in ("beta2", "alpha", "lr")})

    @property
    def needs_closure(self) -> bool:
        """Whether `step` must be given a closure, to evaluate the batch at the point before as well."""
        return self.stochastic and self.adaptive

    @torch.no_grad()
    def step(
        self, closure: Callable[[], Any] | None = None, *, probes: Sequence[Sequence[Tensor]] | None = None
    ) -> Any:
        """Take one step and free the gradients' graph.

        Args:
            closure: clears the gradients, evaluates the loss, calls `backward(create_graph=True)`, returns the loss.
            probes: the sign vectors to use, each one tensor for every parameter that has a gradient, in the groups'
                order: `warmup_probes` of them when a parameter is new, one afterwards.

        Returns:
            What the closure returned at w_k, or None.

        Raises:
            RuntimeError: `stochastic` without a closure, or a gradient that is sparse or has no graph.
        """
        loss, params = self._begin(closure)
        if not params:
            return loss
        new = [p for p in params if p not in self.state]
        draws = self.warmup_probes if new else 1
        options = {"signed": True, "generator": self.generator, "probes": probes, "retain_graph": False}
        estimate = hutchinson_diag([p.grad for p in params], params, draws, **options)
        grads = [p.grad.detach() for p in params]
        for p, g, d in zip(params, grads, estimate, strict=True):
            p.grad = g  # the graph holds the parameters: kept alive it would be a leak
            self.state[p].setdefault("diagonal", d)
        scale = self._scale(dict(zip(params, estimate, strict=True)))
        if self.adaptive:
            self._adapt(params, grads, scale, closure, new)
        rates = [
            float(group["lr"]) * (1 if group["maximize"] else -1)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        direction = torch._foreach_div(grads, scale)
        torch._foreach_mul_(direction, rates)
        torch._foreach_mul_(direction, self.eta)
        torch._foreach_add_(params, direction)
        return loss

    def _scale(self, estimate: dict[Tensor, Tensor]) -> list[Tensor]:
        """Average the estimate in (it is the average where a parameter is new) and truncate."""
        scale: list[Tensor] = []
        for group in self.param_groups:
            members = [p for p in group["params"] if p in estimate]
            if members:
                diagonal = [self.state[p]["diagonal"] for p in members]
                torch._foreach_lerp_(diagonal, [estimate[p] for p in members], 1 - group["beta2"])
                scale += truncate(diagonal, group["alpha"])
        return scale

    def _adapt(
        self, params: list[Tensor], grads: list[Tensor], scale: list[Tensor], closure: Any, new: list[Tensor]
    ) -> None:
        """Apply the step rule, and remember this point (and its gradient, where that is used again)."""
        for p in new:
            self.state[p]["point"] = p.clone()
            if not self.stochastic:
                self.state[p]["gradient"] = p.grad.clone()
        if len(new) == len(params):
            return
        points = [self.state[p]["point"] for p in params]
        if self.stochastic:
            earlier = self._gradients_at(points, params, grads, closure)
        else:
            earlier = [self.state[p]["gradient"] for p in params]
        moved, turned = torch._foreach_sub(params, points), torch._foreach_sub(grads, earlier)
        self.eta, self.theta = step_length(self.eta, self.theta, moved, turned, scale)
        torch._foreach_copy_(points, params)
        if not self.stochastic:
            torch._foreach_copy_(earlier, grads)

    @staticmethod
    def _gradients_at(points: list[Tensor], params: list[Tensor], grads: list[Tensor], closure: Any) -> list[Tensor]:
        """The gradients of the closure's batch at other points; parameters and their gradients are put back."""
        here = [p.clone() for p in params]
        torch._foreach_copy_(params, points)
        for p in params:
            p.grad = None  # a closure that zeroes gradients in place must not reach those that are kept
        torch.enable_grad()(closure)()
        there = [p.grad.detach() for p in params]
        torch._foreach_copy_(params, here)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        return there

    def state_dict(self) -> dict[str, Any]:
        """The usual dictionary, with the step length, its growth, and the random stream."""
        return {**super().state_dict(), "eta": self.eta, "theta": self.theta}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore averages, options, step length and, where the dictionary has it, the random stream."""
        super().load_state_dict(state_dict)
        self.eta, self.theta = (state_dict[name].to(self.eta) for name in ("eta", "theta"))


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all entries, in float32 or better."""
    precision = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors, 2, precision)))


def check(*, beta2: float = 0.0, alpha: float = 1.0, eta0: float = 1.0, lr: float = 0.0) -> None:
    """ValueError for an option of the method that is out of range."""
    check_range("beta2", beta2, high=1)
    check_range("alpha", alpha, low_open=True)
    check_range("eta0", eta0, low_open=True)
    check_range("lr", lr)
