r"""S4D: state-space layers with a diagonal state matrix, whose kernel is a Vandermonde product.

    x' = A x + B u,   y = 2 Re(C x) + D u,   K_l = 2 Re sum_m C_m Bbar_m Abar_m^l

Gu et al., On the parameterization and initialization of diagonal state space models (2022). The printed method is
implemented. The released LegS initialisation clips Im(V* B), whose values depend on the phases of the eigenvectors.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondlook.spectra.state_space import (
    Rule,
    causal_convolution,
    discretize,
    hippo_legs,
    normal_modes,
    vandermonde_kernel,
)

__all__ = ["S4D", "S4DKernel", "diagonal_legs", "impulse_response", "s4d_init", "step_response"]

Init = Literal["legs", "inv", "lin", "real", "random"]
INITS = ("legs", "inv", "lin", "real", "random")


def s4d_init(n: int, kind: Init = "lin", generator: torch.Generator | None = None) -> Tensor:
    """One eigenvalue of each conjugate pair of an n-dimensional state, complex128 `[n // 2]`.

    legs: the normal part of HiPPO-LegS. inv, lin: the paper's two formulas for similar imaginary parts. real: -1, -2,
    ..., no oscillation. random: logarithms of the imaginary parts are standard normal (without `generator`, seed 0).
    """
    if n < 2 or n % 2:
        raise ValueError(f"the state size n must be even, for states come in conjugate pairs; got {n}")
    k = torch.arange(n // 2, dtype=torch.float64)
    if kind == "real":
        return torch.complex(-(k + 1), torch.zeros_like(k))
    if kind == "legs":
        return normal_modes(n)[0][n // 2 :]
    if kind == "inv":
        imag = n / math.pi * (n / (2 * k + 1) - 1)
    elif kind == "lin":
        imag = math.pi * k
    elif kind == "random":
        generator = generator or torch.Generator().manual_seed(0)
        imag = torch.randn(n // 2, generator=generator, dtype=k.dtype).exp()
    else:
        raise ValueError(f"the initialisation must be one of {', '.join(INITS)}, got {kind!r}")
    return torch.complex(torch.full_like(k, -0.5), imag)


def diagonal_legs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """S4D-LegS, the system (A_N, B / 2) in modes: eigenvalues `[n/2]`, V* B / 2 `[n/2]` and V `[n, n/2]`.

    States of HiPPO-LegS are 2 Re(V x). The half is the theorem's: dropping P P^T doubles the response.
    """
    if n < 2 or n % 2:
        raise ValueError(f"the state size n must be even, for states come in conjugate pairs; got {n}")
    A, V = normal_modes(n)
    V = V[:, n // 2 :]
    return A[n // 2 :], V.mH @ hippo_legs(n).B.to(V.dtype) / 2, V


def impulse_response(A: Tensor, B: Tensor, C: Tensor, t: Tensor) -> Tensor:
    """2 Re C exp(t A) B, the kernel at times `t` `[T]`: `[p, T]` for outputs C `[p, m]` of modes A, B `[m]`."""
    return 2 * ((C * B) @ torch.outer(A, t.to(A.dtype)).exp()).real


def step_response(A: Tensor, B: Tensor, C: Tensor, t: Tensor) -> Tensor:
    """Its integral 2 Re C (exp(t A) - 1) A^{-1} B: what a unit step at time 0 has led to at times `t`."""
    return 2 * ((C * (B / A)) @ (torch.outer(A, t.to(A.dtype)).exp() - 1)).real


class S4DKernel(nn.Module):
    """Kernels `[d_model, L]` of `d_model` single-input systems with n states each (n / 2 are kept).

    Args:
        init: a name of `s4d_init` (with B = 1, for legs V* B / 2), or eigenvalues and inputs (A, B), each `[m]`.
        disc: "zoh" or "bilinear".
        dt_min, dt_max: time steps are drawn between them, uniformly in the logarithm.
        generator: of the draws; without it seed 0.

    Real parts of A are kept as logarithms of their negatives, so the systems stay stable.
    """

    def __init__(
        self,
        d_model: int,
        n: int = 64,
        init: Init | tuple[Tensor, Tensor] = "lin",
        disc: Rule = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"time steps need 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
        g = generator or torch.Generator().manual_seed(0)
        if init == "random":
            A = torch.stack([s4d_init(n, "random", g) for _ in range(d_model)])
            B = torch.ones_like(A)
        elif isinstance(init, str):
            A, B = diagonal_legs(n)[:2] if init == "legs" else (s4d_init(n, init), torch.ones(n // 2))
        else:
            A, B = init
            if A.shape != B.shape or bool((A.real >= 0).any()):
                raise ValueError("init = (A, B) needs vectors of one length, and A with negative real parts")
        A, B = (v.to(torch.complex64).expand(d_model, -1) for v in (A, B))
        share = torch.rand(d_model, generator=g)
        self.disc = disc
        self.log_dt = nn.Parameter(math.log(dt_min) + share * math.log(dt_max / dt_min))
        self.log_A_real = nn.Parameter((-A.real).log())
        self.A_imag = nn.Parameter(A.imag.clone())
        self.B = nn.Parameter(torch.view_as_real(B.clone()))
        self.C = nn.Parameter(torch.randn(*A.shape, 2, generator=g) * 0.5**0.5)

    def discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        """log(A_bar), B_bar and C, `[d_model, m]` each.

        In complex128 whatever the parameters are: l dt Im A reaches 1e5, whose sine float32 knows to two digits.
        """
        A = torch.complex(-self.log_A_real.double().exp(), self.A_imag.double())
        B, C = (torch.view_as_complex(v.double()) for v in (self.B, self.C))
        return *discretize(A, B, self.log_dt.double().exp().unsqueeze(-1), self.disc), C

    def forward(self, L: int) -> Tensor:
        log_A, B, C = self.discrete()
        return vandermonde_kernel(log_A, B * C, L).to(self.log_dt.dtype)


class S4D(nn.Module):
    """The layer: a system per channel, a skip, GELU, dropout, and a gated linear unit that mixes channels.

    `forward` maps sequences `[B, d_model, L]` to the same shape by convolution; `step` takes one input at a time.
    Further arguments are those of `S4DKernel`.
    """

    def __init__(
        self, d_model: int, *args, dropout: float = 0.0, generator: torch.Generator | None = None, **kernel
    ) -> None:
        super().__init__()
        g = generator or torch.Generator().manual_seed(0)
        self.kernel = S4DKernel(d_model, *args, generator=g, **kernel)
        self.D = nn.Parameter(torch.randn(d_model, generator=g))
        self.dropout = nn.Dropout(dropout)
        bound = d_model**-0.5
        self.weight = nn.Parameter(torch.empty(2 * d_model, d_model).uniform_(-bound, bound, generator=g))
        self.bias = nn.Parameter(torch.empty(2 * d_model).uniform_(-bound, bound, generator=g))

    def forward(self, u: Tensor) -> Tensor:
        y = causal_convolution(u, self.kernel(u.shape[-1]))
        return self._mix(y + self.D.unsqueeze(-1) * u)

    def step(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output `[B, d_model]` for one input `[B, d_model]`, and the state `[B, d_model, m]` to hand in next time."""
        log_A, B, C = self.kernel.discrete()
        state = B * u.unsqueeze(-1) + (0 if state is None else log_A.exp() * state)
        y = 2 * (C * state).real.sum(-1).to(u.dtype)
        return self._mix((y + self.D * u).unsqueeze(-1)).squeeze(-1), state

    def _mix(self, y: Tensor) -> Tensor:
        y = self.dropout(F.gelu(y))
        return F.glu(self.weight @ y + self.bias.unsqueeze(-1), dim=1)
