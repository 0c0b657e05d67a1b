"""Sophia: clipped steps scaled by a rarely refreshed diagonal of the curvature (Liu et al. 2023, arXiv:2305.14342).

Every k-th step looks at the curvature of each parameter, by one product of the Hessian with a random vector or by one
gradient with labels that the model itself drew. Flat coordinates take a step of Newton's kind; where the curvature is
large, negative or not known yet, the clipping leaves a step of fixed size against the sign of the gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from secondlook.curvature.flat import numel, unpack
from secondlook.optimizers.adahessian.method import hutchinson_diag
from secondlook.optimizers.base import Base, check_betas, check_count, check_range
from secondlook.optimizers.sophia.bartlett import bartlett_diag


class Sophia(Base):
    """Averaged gradient over averaged curvature, every coordinate of the step clipped to at most lr.

    With m the average of the gradients and h that of the curvature diagonals (neither is corrected for its start at
    zero), the update is (Algorithm 3)

        w <- (1 - lr * weight_decay) * w,  w <- w - lr * clip(m / max(rho * h, eps), 1).

    The curvature comes from one of two estimators. By default, `step()` multiplies the Hessian with a Gaussian vector u
    and takes u * (H u): then `loss.backward(create_graph=True)` is needed at the steps at which `wants_graph` is true.
    With `observed=True` the loop hands in the estimate itself, at the steps at which `due` is true:

        scores = model(x)
        if optimizer.due:
            optimizer.observe_scores(scores)  # Gauss-Newton-Bartlett; one backward pass more
        F.cross_entropy(scores, y).backward()
        optimizer.step()

    Args:
        params: parameters, or groups with options of their own.
        lr: step size, the most that a coordinate moves.
        betas: decay of the averages of the gradient and of the curvature.
        rho: a coordinate is clipped where |m| exceeds rho * h. The released advice is to choose it so that
            `win_rate()` lies between 0.1 and 0.5. (It is gamma in the published algorithm. Where that clips at rho
            instead, its learning rate is this one's lr / rho.)
        weight_decay: decoupled, multiplied by lr.
        eps: least denominator. It decides only where |m| is smaller still.
        update_every: steps between refreshes of h; k in the paper.
        observed: the curvature is handed in, see above.
        skip_first: begin with `update_every` steps without curvature as the released code does, instead of a refresh
            at the first step as printed. All these steps follow the sign of m.
        generator: source of vectors and labels. By default one of its own, seeded with `torch.initial_seed()`.
        maximize: ascend instead of descend.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 0.1,
        *,
        eps: float = 1e-12,
        update_every: int = 10,
        observed: bool = False,
        skip_first: bool = False,
        generator: torch.Generator | None = None,
        maximize: bool = False,
    ) -> None:
        check_count("update_every", update_every)
        self.update_every, self.observed, self.skip_first = update_every, observed, skip_first
        self.estimate: dict[Tensor, Tensor] = {}
        options = {"lr": lr, "betas": betas, "rho": rho, "weight_decay": weight_decay, "eps": eps}
        super().__init__(params, {**options, "maximize": maximize, "steps": 0})
        self.generator = self._own_stream(generator)

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay"):
            check_range(name, options[name])
        for name in ("rho", "eps"):
            check_range(name, options[name], low_open=True)
        check_betas(options["betas"])

    @property
    def due(self) -> bool:
        """Whether the next step refreshes the curvature and has no estimate yet."""
        first = self.update_every if self.skip_first else 0
        counts = (group["steps"] for group in self.param_groups)
        return not self.estimate and any(n >= first and n % self.update_every == 0 for n in counts)

    @property
    def wants_graph(self) -> bool:
        """Whether the next step needs `loss.backward(create_graph=True)`."""
        return self.due and not self.observed

    def observe(self, diagonal: Sequence[Tensor]) -> None:
        """Hand in an estimate of the curvature, one tensor for every parameter that requires a gradient.

        The next step averages it in. Tensors are in the groups' order and of the parameters' shapes.
        """
        params = self._trainable()
        if (wanted := [p.shape for p in params]) != (got := [d.shape for d in diagonal]):
            raise ValueError(f"the diagonal needs tensors of shapes {list(map(tuple, wanted))}, got {got}")
        self.estimate = dict(zip(params, diagonal, strict=True))

    def observe_scores(self, scores: Tensor, labels: Tensor | None = None, max_norm: float | None = None) -> None:
        """Hand in what `bartlett_diag` makes of the model's logits [..., classes], of the whole batch or a part."""
        options = {"labels": labels, "generator": self.generator, "max_norm": max_norm}
        self.observe(bartlett_diag(scores, self._trainable(), **options))

    def observe_loss(self, loss: Tensor, probe: Sequence[Tensor] | None = None) -> None:
        """Hand in u * (H u) for the Hessian H of a loss, of the whole batch or a part; frees its graph."""
        params = self._trainable()
        grads = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
        self.observe(self._hutchinson(grads, params, probe))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, probe: Sequence[Tensor] | None = None) -> Any:
        """Take one step, and free the gradients' graph where they have one.

        Args:
            closure: re-evaluates the model, calls `backward` (with `create_graph=True` where `wants_graph`) and returns
                the loss.
            probe: the vector u if this step multiplies with the Hessian, a tensor for every parameter with a gradient.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: no curvature was handed in where it is due, or a gradient has no graph or is sparse.
        """
        loss, params = self._begin(closure)
        if params and self.due:
            if self.observed:
                raise RuntimeError("curvature is due: call observe_scores, observe_loss or observe before this step")
            self.estimate = dict(zip(params, self._hutchinson([p.grad for p in params], params, probe), strict=True))
        for group in self.param_groups:
            if members := [p for p in group["params"] if p.grad is not None]:
                self._update(group, members)
        self.estimate = {}
        return loss

    def _hutchinson(
        self, grads: Sequence[Tensor], params: Sequence[Tensor], probe: Sequence[Tensor] | None
    ) -> list[Tensor]:
        if probe is None:
            draw = torch.randn(numel(params), generator=self.generator, device=self.generator.device)
            probe = unpack(draw, params)
        return hutchinson_diag(grads, params, signed=True, probes=[probe], retain_graph=False)

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        for p in params:
            p.grad = p.grad.detach()  # a graph holds the parameters: kept alive it would be a leak
            if p not in self.state:
                self.state[p] = {"exp_avg": torch.zeros_like(p), "curvature": torch.zeros_like(p)}
        sign = -1 if group["maximize"] else 1
        states = [self.state[p] for p in params]
        m, h = ([s[name] for s in states] for name in ("exp_avg", "curvature"))
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, [p.grad for p in params], alpha=sign * (1 - beta1))
        found = [self.estimate.get(p) for p in params] if self.estimate else []
        if known := [i for i, estimate in enumerate(found) if estimate is not None]:
            refreshed = [h[i] for i in known]
            torch._foreach_mul_(refreshed, beta2)
            torch._foreach_add_(refreshed, [found[i] for i in known], alpha=sign * (1 - beta2))
        step = torch._foreach_mul(h, group["rho"])
        torch._foreach_clamp_min_(step, group["eps"])
        step = torch._foreach_div(m, step)
        torch._foreach_clamp_min_(step, -1)
        torch._foreach_clamp_max_(step, 1)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(params, step, alpha=-lr)
        group["steps"] += 1

    @torch.no_grad()
    def win_rate(self) -> Tensor:
        """Share of the coordinates that the clipping leaves alone, |m| < rho * h, 0-d; NaN before the first step."""
        inside = [
            (self.state[p]["exp_avg"].abs() < group["rho"] * self.state[p]["curvature"]).flatten()
            for group in self.param_groups
            for p in group["params"]
            if p in self.state
        ]
        return torch.cat(inside).float().mean() if inside else torch.tensor(torch.nan)

    def _trainable(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]
