r"""Thermodynamic natural gradient descent (Donatella et al. 2024, arXiv:2405.13817).

An analog device that relaxes by dx = -(A x - b) dt + sqrt(2 / beta) dW has the mean A^-1 b in equilibrium. With A the
damped Gauss-Newton matrix and b the gradient this is the natural gradient; stopped early, it is something between the
gradient and the natural gradient. The device is simulated by the law of that process, which is known in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secondlook.curvature import pack, unpack
from secondlook.optimizers.base import Base, check_count, check_range
from secondlook.optimizers.thermodynamic_ngd.factor import curvature_factor

Spectral = Callable[[Tensor], Tensor]  # eigenvalues -> values of a function at them


class DenseOU:
    """The device for a symmetric positive definite matrix A [N, N]."""

    def __init__(self, A: Tensor) -> None:
        if A.ndim != 2 or A.shape[0] != A.shape[1]:
            raise ValueError(f"A must be a square matrix, got shape {tuple(A.shape)}")
        self.values, self.vectors = torch.linalg.eigh(A)
        if not self.values[0] > 0:
            raise ValueError(f"A must be positive definite, its least eigenvalue is {self.values[0]:.3g}; add damping")

    def apply(self, f: Spectral, v: Tensor) -> Tensor:
        """f(A) v for vectors v [..., N]."""
        return (v @ self.vectors * f(self.values)) @ self.vectors.T


class LowRankOU:
    """The device for A = U U^T + lam I, in time O(N k^2 + k^3) for U [N, k] and without a matrix of N x N.

    With the eigenpairs U^T U = V diag(S) V^T, a function of A is f(A) = f(lam) I + U V diag(h) V^T U^T with the divided
    differences h = (f(S + lam) - f(lam)) / S. Rounding costs about the precision over lam.
    """

    def __init__(self, U: Tensor, lam: float) -> None:
        check_range("lam", lam, low_open=True)
        gram = U.T @ U
        try:
            S, V = torch.linalg.eigh(gram)
        except torch.linalg.LinAlgError:  # in single precision LAPACK gives up on some matrices with denormal entries
            S, V = (found.to(U.dtype) for found in torch.linalg.eigh(gram.double()))
        self.U, self.lam = U, torch.as_tensor(lam, dtype=U.dtype, device=U.device)
        self.kept = len(S) * torch.finfo(S.dtype).eps * S[-1] < S  # the rest is zero up to rounding
        self.S, self.V = torch.where(self.kept, S, 1.0), V

    def apply(self, f: Spectral, v: Tensor) -> Tensor:
        """f(A) v for vectors v [..., N]."""
        rest = f(self.lam)
        difference = torch.where(self.kept, (f(self.S + self.lam) - rest) / self.S, 0.0)
        return rest * v + (v @ self.U @ self.V * difference) @ self.V.T @ self.U.T


def ou_solve(
    A: Tensor | DenseOU | LowRankOU,
    b: Tensor,
    t: float,
    beta: float | None = None,
    x0: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The device's state after time t, an exact draw from its law, not a discretisation.

    x(t) ~ N(exp(-A t) x0 + A^-1 (I - exp(-A t)) b,  A^-1 (I - exp(-2 A t)) / beta)

    Args:
        A: symmetric positive definite matrix [N, N], or a device that has decomposed one already.
        b: right-hand side [N], or [..., N] for as many devices with noise of their own.
        t: how long the device runs; `inf` gives the equilibrium.
        beta: inverse temperature; None or `inf` for the mean.
        x0: state at time 0, by default b: then t = 0 gives b, the gradient itself.
        generator: source of the noise.

    Raises:
        ValueError: t is negative, beta is not positive, or A is not positive definite.
    """
    check_range("t", t, high_open=False)
    device = DenseOU(A) if isinstance(A, Tensor) else A
    x0 = b if x0 is None else x0
    x = device.apply(lambda a: (-a * t).exp(), x0) + device.apply(lambda a: -(-a * t).expm1() / a, b)
    if beta is None or beta == inf:
        return x
    check_range("beta", beta, low_open=True)
    noise = torch.randn(b.shape, generator=generator, dtype=b.dtype, device=b.device)
    return x + device.apply(lambda a: (-(-2 * a * t).expm1() / (a * beta)).sqrt(), noise)


def euler_maruyama(
    A: Tensor, b: Tensor, x: Tensor, dt: float, steps: int, beta: float = inf, generator: torch.Generator | None = None
) -> Tensor:
    """`steps` steps of length dt of the device's equation from the states x [paths, N]; stable for dt < 2 / max(A)."""
    scale = (2 * dt / beta) ** 0.5
    kept, gained = torch.eye(len(b), dtype=A.dtype, device=A.device) - dt * A, dt * b
    for _ in range(steps):
        x = torch.addmm(gained, x, kept)  # x + dt (b - A x)
        if scale:
            x = x + scale * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return x


class TNGD(Base):
    """Steps along what the device reads out after a time t, w <- w - lr * x(t).

    The optimizer differentiates the model's outputs itself, so it is shown the inputs of the batch:

        optimizer.observe(x)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    Args:
        params: parameters of `model`, or groups with learning rates of their own.
        model: maps inputs [b, ...] to outputs [b, C]; examples must not interact (no batch normalisation).
        loss: "cross_entropy" or "mse" (`F.mse_loss`), both means over the batch.
        lr: step size.
        damping: lam in A = F + lam I. The device's slowest mode relaxes in a time of 1 / lam.
        t: how long the device runs in a step; `inf` gives natural gradient descent.
        beta: inverse temperature of the device; `inf` for no noise.
        warm_start: the device runs on from its last readout (zero before the first step). Otherwise it starts from the
            gradient, and t = 0 gives gradient descent.
        delay: the device works with gradient and curvature of so many steps ago (of the first step, at the start).
        base: None, or "adam": the readout goes through Adam's averages (0.9, 0.999).
        generator: source of the device's noise. By default one of its own, seeded with `torch.initial_seed()`.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        params: Any,
        model: nn.Module,
        loss: Literal["cross_entropy", "mse"] = "cross_entropy",
        lr: float = 0.1,
        damping: float = 0.1,
        t: float = 50.0,
        beta: float = inf,
        warm_start: bool = True,
        delay: int = 0,
        base: Literal["adam"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        check_range("damping", damping, low_open=True)
        check_range("t", t, high_open=False)
        check_range("beta", beta, low_open=True, high_open=False)
        check_count("delay", delay, least=0)
        if loss not in ("cross_entropy", "mse"):
            raise ValueError(f"loss must be 'cross_entropy' or 'mse', got {loss!r}")
        if base not in (None, "adam"):
            raise ValueError(f"base must be None or 'adam', got {base!r}")
        self.model, self.loss, self.inputs = model, loss, None
        self.damping, self.t, self.beta = damping, t, beta
        self.warm_start, self.delay, self.base = warm_start, delay, base
        super().__init__(params, {"lr": lr})
        self.names = self._names(model)
        self.generator = self._own_stream(generator)

    def _check(self, options: dict[str, Any]) -> None:
        check_range("lr", options["lr"])

    def _names(self, model: nn.Module) -> list[str]:
        """Names, in the groups' order, of the parameters."""
        known = {p: name for name, p in model.named_parameters()}
        params = [p for group in self.param_groups for p in group["params"]]
        if any(p not in known for p in params):
            raise ValueError("a parameter is not one of `model`: hand in the model whose parameters are trained")
        return [known[p] for p in params]

    def observe(self, inputs: Tensor) -> None:
        """Hand in the inputs [b, ...] of the batch whose gradient the next step takes."""
        self.inputs = inputs

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return what the closure, if there is one, returned.

        Raises:
            RuntimeError: no inputs were handed in, or a parameter has no gradient or a sparse one.
        """
        loss, params = self._begin(closure)
        if self.inputs is None:
            raise RuntimeError("TNGD needs the batch's inputs: call observe(x) before each step")
        if len(params) < len(self.names):
            raise RuntimeError("every parameter needs a gradient; leave those out that the loss does not reach")
        factor = curvature_factor(self.model, dict(zip(self.names, params, strict=True)), self.inputs, self.loss)
        self.inputs = None
        state = self.state[params[0]]  # the device couples all parameters: its state lies with the first
        queue = state.setdefault("waiting", [])
        queue.append([pack([p.grad for p in params]), factor])
        gradient, factor = queue.pop(0) if len(queue) > self.delay else queue[0]

        x = self._readout(state, gradient, factor)
        step = dict(zip(params, unpack(self._adam(state, x) if self.base else x, params), strict=True))
        for group in self.param_groups:
            members = group["params"]
            torch._foreach_add_(members, [step[p] for p in members], alpha=-float(group["lr"]))
        return loss

    def _readout(self, state: dict[str, Any], gradient: Tensor, factor: Tensor) -> Tensor:
        """What the device shows after its time t, kept for the next start."""
        start = state.get("readout", torch.zeros_like(gradient)) if self.warm_start else None
        device = LowRankOU(factor, self.damping)
        state["readout"] = ou_solve(device, gradient, self.t, self.beta, start, self.generator)
        return state["readout"]

    def _adam(self, state: dict[str, Any], x: Tensor) -> Tensor:
        """Adam's direction with the readout in place of the gradient."""
        for name in ("exp_avg", "exp_avg_sq"):
            state.setdefault(name, torch.zeros_like(x))
        state["steps"] = k = state.get("steps", 0) + 1
        m = state["exp_avg"].lerp_(x, 0.1)
        v = state["exp_avg_sq"].lerp_(x.square(), 0.001)
        return (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)


ThermodynamicNGD = TNGD
