r"""State-space models x' = A x + B u, y = C x: the HiPPO matrices, responses, discretisation and kernels.

Gu et al., Efficiently modeling long sequences with structured state spaces (2022), for HiPPO-LegS and its split
A = A_N - P P^T. A diagonal A is given as the vector of its eigenvalues; where these come in conjugate pairs, layers
keep one of each pair and read off y = 2 Re(C x).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "HiPPO",
    "causal_convolution",
    "discretize",
    "hippo_legs",
    "normal_modes",
    "state_response",
    "transfer_function",
    "vandermonde_kernel",
]

Rule = Literal["zoh", "bilinear"]


class HiPPO(NamedTuple):
    """A `[n, n]`, B `[n]` and the low-rank part P `[n]`, in float64."""

    A: Tensor
    B: Tensor
    P: Tensor


def hippo_legs(n: int) -> HiPPO:
    """HiPPO-LegS of state size `n`: lower triangular A with eigenvalues -1..-n, and P with A + P P^T normal."""
    if n < 1:
        raise ValueError(f"the state size n must be at least 1, got {n}")
    k = torch.arange(n, dtype=torch.float64)
    B = (2 * k + 1).sqrt()
    A = -torch.tril(torch.outer(B, B), -1) - torch.diag(k + 1)
    return HiPPO(A, B, (k + 0.5).sqrt())


def normal_modes(n: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[n]`, by growing imaginary part, and orthonormal eigenvectors `[n, n]` of A_N = A + P P^T.

    A_N + I/2 is skew-symmetric: all real parts are -1/2, and for an even n the last n / 2 eigenvalues are one of each
    conjugate pair.
    """
    A, _, P = hippo_legs(n)
    skew = A + torch.outer(P, P) + torch.eye(n, dtype=A.dtype) / 2
    frequencies, V = torch.linalg.eigh(-1j * skew)
    return torch.complex(torch.full_like(frequencies, -0.5), frequencies), V


def state_response(A: Tensor, B: Tensor, freqs: Tensor) -> Tensor:
    """States (i w I - A)^{-1} B at the angular frequencies w, `[F, n]`; A is `[n, n]`, or `[n]` if diagonal."""
    s = torch.complex(torch.zeros_like(freqs), freqs)
    if A.ndim == 1:
        return B / (s.unsqueeze(1) - A)
    shifted = torch.diag_embed(s.unsqueeze(1).expand(-1, len(A))) - A
    return torch.linalg.solve(shifted, B.to(shifted.dtype))


def transfer_function(A: Tensor, B: Tensor, C: Tensor, freqs: Tensor) -> Tensor:
    """G(i w) = C (i w I - A)^{-1} B, `[F]`, or `[F, p]` for C of shape `[p, n]`; see `state_response`."""
    X = state_response(A, B, freqs)
    return X @ C.mT.to(X.dtype) if C.ndim == 2 else X @ C.to(X.dtype)


def discretize(A: Tensor, B: Tensor, dt: Tensor, rule: Rule = "zoh") -> tuple[Tensor, Tensor]:
    """log(A_bar) and B_bar of diagonal systems A, B `[..., m]` with time steps `dt` `[..., 1]`.

    "zoh" holds the input constant over a step and is exact for such inputs; "bilinear" is the trapezoidal rule. The
    logarithm is what a kernel needs, and it does not underflow.
    """
    z = dt * A
    if rule == "zoh":
        return z, (z.exp() - 1) / A * B
    if rule == "bilinear":
        return torch.log(1 + z / 2) - torch.log(1 - z / 2), dt * B / (1 - z / 2)
    raise ValueError(f"the discretisation must be 'zoh' or 'bilinear', got {rule!r}")


def vandermonde_kernel(log_A: Tensor, weights: Tensor, length: int) -> Tensor:
    """K_l = 2 Re sum_m weights_m exp(l log_A_m) for l = 0..length - 1, `[..., m]` to `[..., length]`.

    With l = a r + b and r near sqrt(length) the powers factor, so that 2 sqrt(length) exponentials a mode are enough.
    """
    if length < 1:
        raise ValueError(f"a kernel has at least one entry, got length {length}")
    r = math.isqrt(length - 1) + 1
    steps = torch.arange(r, device=log_A.device)
    blocks = r * torch.arange(math.ceil(length / r), device=log_A.device)
    near = torch.exp(log_A.unsqueeze(-1) * steps)
    far = weights.unsqueeze(-1) * torch.exp(log_A.unsqueeze(-1) * blocks)
    return 2 * (far.mT @ near).real.flatten(-2)[..., :length]


def causal_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """y_l = sum_{j <= l} kernel_{l-j} u_j along the last dimension of u `[..., H, L]` with kernel `[H, L]`.

    By fast Fourier transforms of length 2 L: at length L the end of the sequence would wrap around to its start.
    """
    L = u.shape[-1]
    product = torch.fft.rfft(u, 2 * L) * torch.fft.rfft(kernel, 2 * L)
    return torch.fft.irfft(product, 2 * L)[..., :L]
