"""Linear stability of SGD at interpolating minima, and the minima that training settles in.

Wu, Su, "The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent" (2023). For
L = (1 / 2n) sum_i (f(x_i) - y_i)^2 and a minimum with f(x_i) = y_i, the Hessian is H = (1/n) sum_i a_i a_i^T with
a_i = grad f(x_i). Near it SGD with batches B, drawn with replacement, moves the distance d to the minimum by

    d <- d - (eta / |B|) sum_{i in B} a_i a_i^T d,

so that its second moment S = E d d^T moves by the linear map

    T(S) = S - eta (H S + S H) + eta^2 (E[a a^T S a a^T] / |B| + (1 - 1 / |B|) H S H).

A `model` below is a function `model(params, x)`: points `[..., n, d]` to outputs `[..., n]`, parameters with or
without leading axes that stack independent networks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

from secondlook.curvature import FunctionOperator, HessianOperator, eigsh, pack

__all__ = [
    "Settled",
    "critical_learning_rate",
    "diagonal_linear",
    "interpolation_trace",
    "output_gradients",
    "second_moment_radius",
    "settle",
    "sgd_stability_run",
    "top_eigenvalue",
    "two_layer_relu",
]

Model = Callable[[Sequence[Tensor], Tensor], Tensor]
EXPLOSION = 1e12  # a loss beyond it will not come back


def diagonal_linear(params: Sequence[Tensor], x: Tensor) -> Tensor:
    """f(x) = <u * u - v * v, x> with u and v, `[..., d]`."""
    u, v = params
    return (x @ (u * u - v * v).unsqueeze(-1)).squeeze(-1)


def two_layer_relu(params: Sequence[Tensor], x: Tensor) -> Tensor:
    """f(x) = sum_j a_j relu(b_j . x) with a `[..., m]` and B `[..., m, d]`."""
    a, B = params
    return (torch.relu(x @ B.mT) @ a.unsqueeze(-1)).squeeze(-1)


def output_gradients(model: Model, params: Sequence[Tensor], X: Tensor) -> Tensor:
    """a_i, the gradients of the outputs of one network at the points `[n, d]`: `[n, P]`."""
    one = grad(lambda p, x: model(p, x.unsqueeze(0)).squeeze(0))
    return pack(vmap(one, (None, 0))(tuple(p.detach() for p in params), X), lead=1)


def interpolation_trace(model: Model, params: Sequence[Tensor], X: Tensor) -> float:
    """trace H at an interpolating minimum: the mean squared norm of the output gradients. No Hessian is needed."""
    return float(output_gradients(model, params, X).square().sum(1).mean())


def top_eigenvalue(model: Model, params: Sequence[Tensor], X: Tensor, y: Tensor, tol: float = 1e-6) -> float:
    """The largest eigenvalue of the Hessian of the mean half squared error."""
    H = HessianOperator(model, lambda z, t: (z - t).square().mean() / 2, (X, y), params)
    return float(eigsh(H, tol=tol, generator=torch.Generator().manual_seed(0)).values[0])


def second_moment_radius(A: Tensor, eta: float, batch: int = 1) -> float:
    """Spectral radius of T for output gradients A, `[n, P]`, within their span (outside it nothing moves).

    T maps positive semi-definite matrices to such matrices, hence its radius is its largest eigenvalue, and the
    eigenvector is no stranger to the identity, from which the iteration starts.
    """
    C, noise, decay = _second_moments(A, batch)
    r = C.shape[1]

    def columns(v: Tensor) -> Tensor:
        S = v.T.reshape(-1, r, r)
        return (S - eta * decay * S + eta**2 * noise(S)).flatten(1).T

    return _largest(columns, C)


def critical_learning_rate(A: Tensor, batch: int = 1) -> float:
    """The learning rate up to which SGD is linearly stable in mean square: where `second_moment_radius` reaches one.

    T - I is negative semi-definite iff eta M <= N, with N: S -> H S + S H and M the quadratic term, hence
    1 / eta = largest eigenvalue of N^(-1/2) M N^(-1/2). Scaling by N keeps positive semi-definiteness (Schur).
    """
    C, noise, decay = _second_moments(A, batch)
    r, root = C.shape[1], decay.rsqrt()
    return 1 / _largest(lambda v: (root * noise(root * v.T.reshape(-1, r, r))).flatten(1).T, C)


def _second_moments(A: Tensor, batch: int) -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
    """Gradients `[n, r]` in the eigenbasis of H, the map M on `[k, r, r]`, and N as a factor for each entry of S."""
    if A.ndim != 2 or not bool(torch.isfinite(A).all()) or not bool(A.any()):
        raise ValueError(f"gradients must be a finite, nonzero [n, P] matrix, got shape {tuple(A.shape)}")
    if batch < 1:
        raise ValueError(f"a batch has at least one sample, got {batch}")
    U, s, _ = torch.linalg.svd(A, full_matrices=False)
    keep = s > 1e-10 * s[0]
    C, eigenvalues = U[:, keep] * s[keep], s[keep] ** 2 / len(A)
    products = eigenvalues.unsqueeze(1) * eigenvalues

    def noise(S: Tensor) -> Tensor:
        energy = ((C @ S) * C).sum(-1, keepdim=True)  # a^T S a for each sample
        return (C.T @ (energy * C)) / (len(A) * batch) + (1 - 1 / batch) * products * S

    return C, noise, eigenvalues.unsqueeze(1) + eigenvalues


def _largest(columns: Callable[[Tensor], Tensor], C: Tensor) -> float:
    r = C.shape[1]
    operator = FunctionOperator(columns, r * r, dtype=C.dtype, device=C.device)
    start = torch.eye(r, dtype=C.dtype, device=C.device).reshape(-1, 1)
    return float(eigsh(operator, tol=1e-8, start=start).values[0])


@dataclass(frozen=True)
class Settled:
    """Where S independent runs ended: parameters `[S, ...]`, loss `[S]` over all points, steps taken `[S]`."""

    params: list[Tensor]
    loss: Tensor
    steps: Tensor


def settle(
    model: Model,
    params: Sequence[Tensor],
    X: Tensor,
    y: Tensor,
    eta: Tensor,
    *,
    batch: int | None = 1,
    steps: int,
    tol: float,
    generator: torch.Generator | None = None,
    every: int = 100,
) -> Settled:
    """SGD on S independent problems at once, each until its full loss is at most `tol`, explodes, or time is up.

    Args:
        params: tensors `[S, ...]`, not changed.
        X, y: points `[S, n, d]` and targets `[S, n]`.
        eta: learning rates `[S]`.
        batch: samples a step, drawn with replacement from `generator`; None takes all: gradient descent.
        every: steps between two looks at the full loss.
    """
    if batch is not None and generator is None:
        raise ValueError("drawing samples needs a generator: pass generator=torch.Generator().manual_seed(...)")
    if steps < 1 or every < 1 or tol <= 0 or bool((eta <= 0).any()):
        raise ValueError(f"steps, every, tol and eta must be positive, got {steps}, {every}, {tol} and {eta}")
    count, n = y.shape
    final, loss = [p.detach().clone() for p in params], y.new_full((count,), torch.inf)
    taken = torch.zeros(count, dtype=torch.long, device=y.device)
    alive, now = torch.arange(count, device=y.device), [p.clone().requires_grad_() for p in final]
    for first in range(0, steps, every):
        chunk = min(every, steps - first)
        # Drawn for all problems, so that a run does not depend on when its neighbours end.
        picks = None if batch is None else torch.randint(n, (chunk, count, batch), generator=generator).to(y.device)
        rows = torch.arange(len(alive), device=y.device).unsqueeze(1)
        for t in range(chunk):
            x, target = X, y
            if picks is not None:
                pick = picks[t, alive]
                x, target = X[rows, pick], y[rows, pick]
            with torch.enable_grad():
                error = (model(now, x) - target).square().mean(1) / 2
                step = torch.autograd.grad((eta * error).sum(), now)
            with torch.no_grad():
                torch._foreach_sub_(now, step)
        with torch.no_grad():
            loss[alive] = (model(now, X) - y).square().mean(1) / 2
        taken[alive] += chunk
        moving = (loss[alive] > tol) & (loss[alive] < EXPLOSION)
        if not bool(moving.all()):
            for kept, p in zip(final, now, strict=True):
                kept[alive] = p.detach()
            alive, X, y, eta = alive[moving], X[moving], y[moving], eta[moving]
            now = [p.detach()[moving].requires_grad_() for p in now]
            if not len(alive):
                break
    for kept, p in zip(final, now, strict=True):
        kept[alive] = p.detach()
    return Settled(final, loss, taken)


def sgd_stability_run(
    model: Model,
    params: Sequence[Tensor],
    X: Tensor,
    y: Tensor,
    eta: Tensor,
    batch: int | None = 1,
    steps: int = 60_000,
    tol: float = 1e-12,
    *,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor | list[Tensor]]:
    """`settle`, and how sharp the minima are: `params`, `loss`, `steps`, `trace` and `lam_max`, one value a run.

    Sharpness is NaN where the loss did not reach `tol`: short of interpolation H has another term.
    """
    end = settle(model, params, X, y, eta, batch=batch, steps=steps, tol=tol, generator=generator)
    trace, top = torch.full_like(end.loss, torch.nan), torch.full_like(end.loss, torch.nan)
    for i in (end.loss <= tol).nonzero().flatten().tolist():
        at = [p[i] for p in end.params]
        trace[i], top[i] = interpolation_trace(model, at, X[i]), top_eigenvalue(model, at, X[i], y[i])
    return {"params": end.params, "loss": end.loss, "steps": end.steps, "trace": trace, "lam_max": top}
