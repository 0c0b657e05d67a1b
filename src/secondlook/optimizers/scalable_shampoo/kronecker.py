"""Least squares |A W B - C|^2, whose Hessian is a Kronecker product with a condition number of choice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secondlook.optimizers.scalable_shampoo.roots import inverse_pth_root

EPS = 1e-12  # float64 bears a ridge this small
Make = Callable[..., torch.optim.Optimizer]


def spread(n: int, condition: float, g: torch.Generator) -> Tensor:
    """A random matrix `[n, n]` whose singular values run evenly over the logarithm from 1 to 1 / condition."""
    u, v = (torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0] for _ in range(2))
    return u * torch.logspace(0, -torch.tensor(condition).log10().item(), n, dtype=torch.float64) @ v


@dataclass(frozen=True)
class Problem:
    """|A (W - W*) B|^2 / 2 for every start at once: A `[starts, m, m]`, B `[starts, n, n]`, W* `[starts, m, n]`."""

    a: Tensor
    b: Tensor
    best: Tensor

    @classmethod
    def draw(cls, seeds: Sequence[int], m: int, n: int, condition: float) -> "Problem":
        """A and B have the condition number `condition` each, so the Hessian has its fourth power."""
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        parts = [
            (spread(m, condition, g), spread(n, condition, g), torch.randn(m, n, generator=g, dtype=torch.float64))
            for g in streams
        ]
        return cls(*(torch.stack(part) for part in zip(*parts, strict=True)))

    def residual(self, w: Tensor) -> Tensor:
        """A (W - W*) B at w `[..., starts, m, n]`."""
        return self.a @ (w - self.best) @ self.b

    def gradient(self, w: Tensor) -> Tensor:
        return self.a.mT @ self.residual(w) @ self.b.mT

    @torch.no_grad()
    def path(self, make: Make, lrs: Sequence[float], steps: int) -> Tensor:
        """Loss over the loss at 0, where all begin, after 0 to `steps` steps: `[steps + 1, lrs, starts]`."""
        w = torch.zeros(len(lrs), *self.best.shape, dtype=torch.float64)
        views = [w[i, j].requires_grad_() for i in range(len(lrs)) for j in range(len(self.best))]
        many = len(self.best)
        groups = [{"params": views[i * many : (i + 1) * many], "lr": lr} for i, lr in enumerate(lrs)]
        optimizer = make(groups, lr=lrs[0])
        losses = [self.residual(w).square().sum((-2, -1))]
        for _ in range(steps):
            for view, g in zip(views, self.gradient(w).flatten(0, 1), strict=True):
                view.grad = g
            optimizer.step()
            losses.append(self.residual(w).square().sum((-2, -1)))
        return torch.stack(losses) / losses[0]

    def condition(self, rule: str, gradients: int, g: torch.Generator) -> Tensor:
        """Condition number `[starts]` of the Hessian as the rule sees it, after gradients at random points.

        Rules: `none`; `shampoo`, L^(-1/4) and R^(-1/4) on the two sides; `diagonal`, the root of the summed squares;
        `square-roots`, the power -1/2 in place of -1/4, a common slip.
        """
        at = torch.randn(gradients, *self.best.shape, generator=g, dtype=torch.float64)
        grads = self.gradient(self.best + at)
        if rule == "diagonal":
            scale = grads.square().sum(0).flatten(1).sqrt().rsqrt()
            hessian = torch.stack([torch.kron(a.mT @ a, b @ b.mT) for a, b in zip(self.a, self.b, strict=True)])
            return _spread_of(scale[:, :, None] * hessian * scale[:, None, :])
        left, right = (torch.eye(n, dtype=torch.float64).expand(len(self.a), n, n) for n in self.best.shape[1:])
        if rule != "none":
            p = {"shampoo": 4, "square-roots": 2}[rule]
            left, _ = inverse_pth_root((grads @ grads.mT).sum(0), p, EPS, 1e-13)
            right, _ = inverse_pth_root((grads.mT @ grads).sum(0), p, EPS, 1e-13)
        return _spread_of(self.a @ left @ self.a.mT) * _spread_of(self.b.mT @ right @ self.b)


def _spread_of(matrices: Tensor) -> Tensor:
    """Largest over smallest eigenvalue of symmetric matrices."""
    values = torch.linalg.eigvalsh(matrices)
    return values[..., -1] / values[..., 0]
