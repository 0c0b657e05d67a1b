r"""The transfer measure of two domains with a logistic head, and its bound by the distance of their Hessians.

The measure (section on transferability) is the largest excess risk on the target T that a near-optimal head of the
source S can have beyond its excess on S,

    T_delta = max { [L_T(w) - min L_T] - [L_S(w) - min L_S] : L_S(w) - min L_S <= delta }.

Where both losses have one and the same minimiser and $L_S$ has curvature at least mu there, a second-order expansion
gives $|w - w_S|^2 \le 2 \delta / \mu$ and with it $T_\delta \le (\delta / \mu) \|H_T - H_S\|_2 + o(\delta)$.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .method import head_gradient, head_hessian

__all__ = ["minimiser", "transfer_bound", "transfer_measure"]

Domain = tuple[Tensor, Tensor]  # features [N, F], probabilities of label one [N]


def transfer_bound(delta: float, source: Tensor, target: Tensor) -> Tensor:
    """delta / mu times the spectral norm of the difference of the two Hessians `[P, P]`, 0-d."""
    mu = torch.linalg.eigvalsh(source)[0]
    if not bool(mu > 0):
        raise ValueError(f"the source's Hessian must be positive definite, its smallest eigenvalue is {float(mu):.3g}")
    return delta / mu * torch.linalg.matrix_norm(target - source, 2)


def transfer_measure(
    source: Domain, target: Domain, delta: float, *, directions: int = 64, generator: torch.Generator
) -> Tensor:
    """The measure from below, 0-d: its maximum over the boundary of the delta-optimal set along many rays.

    Rays from the source's minimiser: random ones, and the generalised eigenvectors of the pair of Hessians, either
    way, among which the maximum lies when both losses are quadratic.
    """
    if delta <= 0:
        raise ValueError(f"delta must be positive, got {delta}")
    w = minimiser(source)
    least_source, least_target = loss(source, w), loss(target, minimiser(target))
    H_S, H_T = (head_hessian(*domain, head(w)) for domain in (source, target))
    inverse = torch.linalg.inv(torch.linalg.cholesky(H_S))
    _, vectors = torch.linalg.eigh(inverse @ (H_T - H_S) @ inverse.mT)
    random = torch.randn(directions, len(w), generator=generator, dtype=w.dtype)
    rays = torch.cat([(inverse.mT @ vectors).mT, random])
    rays = torch.cat([rays, -rays])
    rays = rays / torch.linalg.vector_norm(rays, dim=1, keepdim=True)
    there = w + _reach(source, w, rays, least_source + delta) * rays
    gap = (loss(target, there) - least_target) - (loss(source, there) - least_source)
    return gap.max()


def _reach(domain: Domain, w: Tensor, rays: Tensor, level: Tensor) -> Tensor:
    """How far along every ray `[R, P]` from `w` the loss rises to `level`, `[R, 1]`.

    The loss is convex on a ray, so Newton's method from beyond comes down to the place and never passes it.
    """
    z, y = domain
    start, slope = (v[..., :-1] @ z.mT + v[..., -1:] for v in (w, rays))

    def rise(t: Tensor) -> Tensor:
        logits = start + t * slope
        return (F.softplus(logits) - y * logits).mean(1, keepdim=True) - level

    t = rays.new_ones(len(rays), 1)
    while bool((short := rise(t) < 0).any()):
        t = torch.where(short, 2 * t, t)
    for _ in range(40):
        steepness = (((start + t * slope).sigmoid() - y) * slope).mean(1, keepdim=True)
        step = rise(t) / steepness
        t = t - step
        if bool((step.abs() <= 1e-10 * t).all()):
            break
    return t


def head(w: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a logistic head from its parameters `[F + 1]`."""
    return w[None, :-1], w[-1:]


def loss(domain: Domain, w: Tensor) -> Tensor:
    """Logistic loss of heads `[..., F + 1]` on a domain, `[...]`."""
    z, y = domain
    logits = w[..., :-1] @ z.mT + w[..., -1:]
    return (F.softplus(logits) - y * logits).mean(-1)


def minimiser(domain: Domain, steps: int = 50) -> Tensor:
    """The best logistic head of a domain, `[F + 1]`, by Newton's method with halved steps.

    Raises `ValueError` when the gradient does not vanish (separable data have no minimiser).
    """
    w = domain[0].new_zeros(domain[0].shape[1] + 1)
    for _ in range(steps):
        g = head_gradient(*domain, head(w))
        if float(g.norm()) < 1e-12:
            break
        step, t = torch.linalg.solve(head_hessian(*domain, head(w)), g), 1.0
        while float(loss(domain, w - t * step)) > float(loss(domain, w)) and t > 1e-8:
            t /= 2
        w = w - t * step
    if not float(head_gradient(*domain, head(w)).norm()) < 1e-8:
        raise ValueError("the loss has no minimiser here: are the labels separable?")
    return w
