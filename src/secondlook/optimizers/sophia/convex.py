"""Convex problems whose curvatures are spread over a factor kappa, and how many steps each rule takes on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from secondlook.optimizers.sophia.method import Sophia


@dataclass(frozen=True)
class Problem:
    """sum_i c_i phi(s_i) with s = Q (x - b), for every kappa and every start at once; the minimum is 0 at b.

    `c` [kappas, 1, dim] runs from 1 to kappa evenly over the logarithm, `b` [starts, dim] is normal. Q is the identity,
    or a random rotation for every start, which `turn` [starts, dim, dim] then holds.
    """

    c: Tensor
    b: Tensor
    turn: Tensor | None
    quadratic: bool  # phi(s) = s^2 / 2, else log cosh s

    @classmethod
    def draw(cls, name: str, kappas: Sequence[float], seeds: Sequence[int], dim: int) -> "Problem":
        """`name` is quadratic or log-cosh, with -rotated behind it where the axes are turned."""
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        c = torch.stack([torch.logspace(0, torch.tensor(k).log10().item(), dim, dtype=torch.float64) for k in kappas])
        b = torch.stack([torch.randn(dim, dtype=torch.float64, generator=g) for g in draws])
        turns = [torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=g))[0] for g in draws]
        return cls(c[:, None], b, torch.stack(turns) if "rotated" in name else None, name.startswith("quadratic"))

    def along(self, x: Tensor) -> Tensor:
        """s at x [..., starts, dim]."""
        s = x - self.b
        return s if self.turn is None else torch.einsum("sij,...sj->...si", self.turn, s)

    def value(self, x: Tensor) -> Tensor:
        s = self.along(x).abs()
        phi = s**2 / 2 if self.quadratic else s + torch.log1p(torch.expm1(-2 * s) / 2)  # log cosh, stable at 0
        return (self.c * phi).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return self.derivatives(x)[0]

    def derivatives(self, x: Tensor, second: bool = False) -> tuple[Tensor, Tensor | None]:
        """The gradient and, where asked for, the exact diagonal of the Hessian."""
        s = self.along(x)
        slope = s if self.quadratic else s.tanh()
        g = self.c * slope
        h = self.c * (torch.ones_like(x) if self.quadratic else 1 - slope**2) if second else None
        if self.turn is not None:
            g = torch.einsum("sij,...si->...sj", self.turn, g)
            h = torch.einsum("sij,...si->...sj", self.turn**2, h) if second else None
        return g, h


Advance = Callable[[], None]
Choice = dict[str, float]  # what is tuned of a rule


def gradient_descent(problem: Problem, x: Tensor, choices: Sequence[Choice]) -> Advance:
    """Steps of lr / kappa, with heavy-ball momentum where chosen; kappa is the largest curvature."""
    lr, momentum = (
        torch.tensor([c.get(name, 0.0) for c in choices], dtype=x.dtype).view(-1, 1, 1, 1)
        for name in ("lr", "momentum")
    )
    lr = lr / problem.c[..., -1:]
    velocity = torch.zeros_like(x)

    def advance() -> None:
        velocity.mul_(momentum).addcmul_(problem.gradient(x), lr, value=-1)
        x.add_(velocity)

    return advance


def by_class(problem: Problem, x: Tensor, make: Callable[..., torch.optim.Optimizer], groups: list[Choice]) -> Advance:
    """Steps of an optimizer with a parameter group for every choice."""
    parts = [x[i].requires_grad_() for i in range(len(x))]  # views: steps write through to x
    optimizer = make([{"params": [part], **group} for part, group in zip(parts, groups, strict=True)])

    def advance() -> None:
        due = getattr(optimizer, "due", False)
        gradient, diagonal = problem.derivatives(x, second=due)
        for part, g in zip(parts, gradient.unbind(), strict=True):
            part.grad = g
        if due:
            optimizer.observe(diagonal.unbind())
        optimizer.step()

    return advance


def started(rule: str, problem: Problem, x: Tensor, choices: Sequence[Choice]) -> Advance:
    """A rule, ready to move the points `x` [choices, kappas, starts, dim].

    Sophia's choices are the clipping radius `lr` and the fraction `newton` of Newton's step that it takes inside.
    """
    if rule in ("gd", "heavy-ball"):
        return gradient_descent(problem, x, choices)
    if rule == "adam":
        return by_class(problem, x, torch.optim.Adam, list(choices))
    sophia = partial(Sophia, weight_decay=0.0, observed=True)
    if rule == "sophia":  # the paper's deterministic form, without averages
        sophia = partial(sophia, betas=(0.0, 0.0), update_every=1)
    elif rule != "sophia-averaged":  # that one with the averages and the refreshes of training
        raise ValueError(f"no rule {rule!r}; use gd, heavy-ball, adam, sophia or sophia-averaged")
    return by_class(problem, x, sophia, [{"lr": c["lr"], "rho": c["lr"] / c["newton"]} for c in choices])


@torch.no_grad()
def steps_needed(rule: str, problem: Problem, choices: Sequence[Choice], target: float, limit: int) -> Tensor:
    """Steps until the value is below `target`, [choices, kappas, starts]; infinite where `limit` does not do.

    The value is looked up at steps that grow by 2%. When one choice has solved
    everything, the others get as many steps again.
    """
    x = torch.zeros(len(choices), len(problem.c), *problem.b.shape, dtype=torch.float64)
    advance = started(rule, problem, x, choices)
    needed = torch.full(x.shape[:-1], torch.inf, dtype=torch.float64)
    look, end = 1, limit
    for step in range(1, limit + 1):
        advance()
        if step == look:
            needed = torch.where((problem.value(x) < target) & needed.isinf(), step, needed)
            look = max(step + 1, round(1.02 * step))
            if needed.isfinite().flatten(1).all(1).any():
                end = min(end, 2 * step)
        if step >= end:
            break
    return needed


def trajectories(steps: int, lr: float) -> dict[str, list[tuple[float, float]]]:
    """Paths on a loss that is sharp and not convex in one coordinate and flat in the other.

    8 (a - 1)^2 (1.3 a^2 + 2 a + 1) + (b - 4)^2 / 2. Sign descent and Sophia move by at most `lr` a step;
    gradient descent takes about the largest stable step; Newton's method has none to choose.
    """

    def loss(w: Tensor) -> Tensor:
        a, b = w
        return 8 * (a - 1) ** 2 * (1.3 * a**2 + 2 * a + 1) + (b - 4) ** 2 / 2

    paths: dict[str, list[tuple[float, float]]] = {}
    for method in ("gd", "sign", "newton", "sophia"):
        w = torch.tensor([-0.2, 0.0], dtype=torch.float64, requires_grad=True)
        sophia = Sophia([w], lr, (0, 0), rho=lr, weight_decay=0, update_every=1, observed=True)
        path = [tuple(w.tolist())]
        for _ in range(steps):
            (w.grad,) = torch.autograd.grad(loss(w), w)
            diagonal = torch.autograd.functional.hessian(loss, w.detach()).diagonal()
            if method == "sophia":
                sophia.observe([diagonal])
                sophia.step()
            else:
                move = {"gd": 0.02 * w.grad, "sign": lr * w.grad.sign(), "newton": w.grad / diagonal}[method]
                w.data -= move
            path.append(tuple(w.tolist()))
        paths[method] = path
    return paths
