"""Gradient descent that takes rate and momentum from Lanczos runs on its own batches."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from secondlook.curvature import FunctionOperator, lanczos, numel, pack, probe_vectors, unpack
from secondlook.curvature.products import derivative
from secondlook.optimizers.base import Base, check_count, check_range


class LanczosLR(Base):
    r"""Heavy-ball descent with rate $\text{safety} \cdot 2 (1 + \beta) / \lambda_1$, the share of what is stable.

    Every `refresh` steps a Lanczos run on the batch's Hessian gives its Ritz values. The largest is $\lambda_1$; with
    `momentum=None` the momentum is Polyak's for the range of the positive ones, $\beta = ((\sqrt\kappa - 1) /
    (\sqrt\kappa + 1))^2$. How the paper turns its spectra into momentum was not at hand. Where no Ritz value is
    positive the last rate stays.

    Args:
        lr: rate until a positive curvature has been seen.
        momentum: a fixed one, or None.
        refresh: steps between Lanczos runs; there `backward(create_graph=True)` is needed, see `wants_graph`.
        lanczos_steps: products with the Hessian in a run.
        safety: share of the largest stable rate.
        generator: draws the starting vectors.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        momentum: float | None = None,
        refresh: int = 100,
        lanczos_steps: int = 10,
        safety: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        check_count("refresh", refresh)
        check_count("lanczos_steps", lanczos_steps)
        check_range("safety", safety, high=1.0, low_open=True, high_open=False)
        self.refresh, self.lanczos_steps, self.safety = refresh, lanczos_steps, safety
        super().__init__(params, {"lr": lr, "momentum": momentum or 0.0, "fixed": momentum is not None, "taken": 0})
        self.generator = self._own_stream(generator)

    def _check(self, options: dict[str, Any]) -> None:
        check_range("lr", options["lr"])
        check_range("momentum", options["momentum"], high=1.0)

    @property
    def wants_graph(self) -> bool:
        return self.param_groups[0]["taken"] % self.refresh == 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; where `wants_graph`, first look at the curvature."""
        loss, params = self._begin(closure)
        if self.wants_graph:
            self._look(params)
        for group in self.param_groups:
            group["taken"] += 1
            members = [p for p in group["params"] if p.grad is not None]
            for p in members:
                if "velocity" not in self.state[p]:
                    self.state[p]["velocity"] = torch.zeros_like(p)
            velocities = [self.state[p]["velocity"] for p in members]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, [p.grad.detach() for p in members])
            torch._foreach_add_(members, velocities, alpha=-group["lr"])
        return loss

    def _look(self, params: list[Tensor]) -> None:
        """Rate and momentum from the Ritz values of this batch's Hessian."""
        grads = [p.grad for p in params]
        if not any(g.requires_grad for g in grads):
            raise RuntimeError("this step looks at the curvature: call backward(create_graph=True) where wants_graph")

        def product(block: Tensor) -> Tensor:
            parts = derivative(grads, params, unpack(block[:, 0], params), batched=False)
            return pack(parts).unsqueeze(1)

        like = params[0]
        H = FunctionOperator(product, numel(params), dtype=like.dtype, device=like.device)
        start = probe_vectors(numel(params), 1, generator=self.generator, dtype=like.dtype, device=like.device)
        T, _, _ = lanczos(H, start, self.lanczos_steps)
        ritz = torch.linalg.eigvalsh(T[0]).tolist()
        top = ritz[-1]
        if top <= 0:
            return
        kappa = top / min(value for value in ritz if value > 1e-6 * top)
        for group in self.param_groups:
            if not group["fixed"]:
                group["momentum"] = ((math.sqrt(kappa) - 1) / (math.sqrt(kappa) + 1)) ** 2
            group["lr"] = self.safety * 2 * (1 + group["momentum"]) / top
