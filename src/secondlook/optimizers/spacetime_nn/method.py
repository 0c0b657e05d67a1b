"""A network of space and time that solves Schroedinger's equation at all times at once (arXiv:2108.02200).

psi(s, t) = sqrt(p(s | t)) exp(i phi(s, t)) for spins s, with p a product of conditionals and so normalised at every t.
The weights minimise the residual of the implicit mid-point rule on a grid of times,

    r_k = (psi_{k+1} - psi_k) / dt + i H (psi_{k+1} + psi_k) / 2,

which is linear in psi. Its Jacobian by the weights is therefore the same map, applied to d psi = psi d log psi.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from secondlook.curvature.flat import pack, unpack
from secondlook.optimizers.base import check_count, check_range


def configurations(n: int, device: str | torch.device = "cpu") -> Tensor:
    """All 2^n spin configurations, [2^n, n] of 0 and 1; row i holds the binary digits of i, the first spin leading."""
    digits = torch.arange(n - 1, -1, -1, device=device)
    return (torch.arange(2**n, device=device)[:, None] >> digits) & 1


def tfim(n: int, J: float = 1.0, g: float = 1.0, periodic: bool = True, device: str | torch.device = "cpu") -> Tensor:
    """H = -J sum_i Z_i Z_{i+1} - g sum_i X_i, sparse [2^n, 2^n] in float64, Z = 1 for s = 0 and -1 for s = 1.

    Sparse in coordinates (COO). A periodic chain of two spins has its one bond twice, a single spin has none.
    """
    check_count("n", n)
    z = 1 - 2 * configurations(n, device).double()
    bonds = (z * z.roll(-1, 1))[:, : n if periodic and n > 1 else n - 1].sum(1)
    rows = torch.arange(2**n, device=device)
    flipped = [rows ^ (1 << i) for i in range(n)]
    index = torch.stack([rows.repeat(n + 1), torch.cat([rows, *flipped])])
    values = torch.cat([-J * bonds, bonds.new_full((n * 2**n,), -g)])
    return torch.sparse_coo_tensor(index, values, (2**n, 2**n), check_invariants=True).coalesce()


class SpacetimeAR(nn.Module):
    """log psi(s, t) of an autoregressive network: masked layers give the conditionals, a second network the phase.

    Both get the time, too; the phase has a term linear in it, for the phase that all configurations share.

    Args:
        n_spins: length of s.
        hidden: width of the hidden layers, at least `n_spins`.
        depth: number of hidden layers.
        complex_phase: False leaves psi real and positive, which real-time dynamics is not.
        energy: what the phase turns by in a unit of time, to begin with: minus the mean energy of the initial state.
        generator: draws the weights, on the CPU.
    """

    def __init__(
        self,
        n_spins: int,
        hidden: int,
        depth: int = 1,
        complex_phase: bool = True,
        *,
        energy: float = 0.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        check_count("n_spins", n_spins)
        check_count("hidden", hidden, n_spins)
        check_count("depth", depth)
        super().__init__()
        widths = [n_spins + 1, *[hidden] * depth]
        self.amplitude = _layers([*widths, n_spins], generator, dtype)
        self.phase = _layers([*widths, 1], generator, dtype) if complex_phase else None
        self.energy = nn.Parameter(torch.tensor(energy, dtype=dtype)) if complex_phase else None
        # A unit of degree d sees the first d spins; degree 0 only the time. Conditional j may use degrees below j.
        inputs = torch.cat([torch.arange(1, n_spins + 1), torch.zeros(1)])
        units, outputs = torch.arange(hidden) % n_spins, torch.arange(n_spins)
        degrees = [inputs, *[units] * depth, outputs]
        for i, (low, high) in enumerate(pairwise(degrees)):
            self.register_buffer(f"mask{i}", (low <= high[:, None]).to(dtype))

    def heads(self, s: Tensor, t: Tensor) -> Tensor:
        """log |psi| and phase, [..., 2], at s [..., n] of 0 and 1 and t [...]."""
        x = torch.cat([1 - 2 * s.to(t.dtype), t.unsqueeze(-1)], -1)
        h = x
        for i, layer in enumerate(self.amplitude):
            h = F.linear(h.tanh() if i else h, layer.weight * getattr(self, f"mask{i}"), layer.bias)
        log_amplitude = 0.5 * F.logsigmoid((2 * s.to(t.dtype) - 1) * h).sum(-1)
        if self.phase is None:
            return torch.stack([log_amplitude, torch.zeros_like(log_amplitude)], -1)
        for i, layer in enumerate(self.phase):
            x = layer(x.tanh() if i else x)
        return torch.stack([log_amplitude, x.squeeze(-1) + self.energy * t], -1)

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """log psi(s, t), complex [...], for s [..., n] of 0 and 1 and t [...]."""
        return torch.view_as_complex(self.heads(s, t))


class _Affine(nn.Module):
    """x -> W x + b, W of deviation `scale` / sqrt(fan-in) and b of deviation 1."""

    def __init__(self, fan_in: int, width: int, scale: float, generator: torch.Generator | None, dtype: torch.dtype):
        super().__init__()
        weight = torch.randn(width, fan_in, generator=generator, dtype=dtype)
        self.weight = nn.Parameter(scale / math.sqrt(fan_in) * weight)
        self.bias = nn.Parameter(torch.randn(width, generator=generator, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def _layers(widths: list[int], generator: torch.Generator | None, dtype: torch.dtype) -> nn.ModuleList:
    """Affine layers from an input whose last entry is the time, to a function that starts small.

    Weights of the time begin three times larger than others, for a state changes fast; those of the last layer ten
    times smaller, without a bias: the state begins nearly even.
    """
    layers = nn.ModuleList(_Affine(*pair, 1.0, generator, dtype) for pair in pairwise(widths))
    with torch.no_grad():
        layers[0].weight[:, -1] *= 3
        layers[-1].weight *= 0.1
        layers[-1].bias.zero_()
    return layers


class Grid:
    """All configurations at all times, and a network's states and their derivatives there.

    Args:
        net: its parameters are what `params` (a dictionary) and `flat` (one vector) replace below.
        times: [K+1].
    """

    def __init__(self, net: SpacetimeAR, n_spins: int, times: Tensor) -> None:
        s = configurations(n_spins, times.device)
        self.net, self.shape = net, (len(times), len(s))
        self.s, self.t = s.repeat(len(times), 1), times.repeat_interleave(len(s))

    def psi(self, params: dict[str, Tensor]) -> Tensor:
        """States [K+1, 2^n]."""
        return functional_call(self.net, params, (self.s, self.t)).exp().reshape(self.shape)

    def psi_and_derivative(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """States [K+1, 2^n] and their derivatives [K+1, 2^n, P]: a backward pass for each modulus and phase."""
        names, like = zip(*self.net.named_parameters(), strict=True)
        params = dict(zip(names, unpack(flat, like), strict=True))

        def heads(params: dict[str, Tensor], s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            value = functional_call(_Heads(self.net), {f"net.{k}": v for k, v in params.items()}, (s, t))
            return value, value

        by_name, value = vmap(jacrev(heads, has_aux=True), (None, 0, 0))(params, self.s, self.t)
        psi = torch.view_as_complex(value).exp()
        log_derivative = torch.view_as_complex(pack(by_name.values(), lead=2).mT.contiguous())
        return psi.reshape(self.shape), (psi[:, None] * log_derivative).reshape(*self.shape, -1)


class _Heads(nn.Module):
    """A network's `heads` as its forward pass."""

    def __init__(self, net: SpacetimeAR) -> None:
        super().__init__()
        self.net = net

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        return self.net.heads(s, t)


def apply(H: Tensor, psi: Tensor) -> Tensor:
    """The real matrix H [N, N] times complex psi along its second axis, [K, N, ...]."""
    parts = torch.view_as_real(psi)
    if H.is_sparse:  # which multiplies one matrix only
        columns = parts.movedim(1, 0)
        product = (H @ columns.flatten(1)).reshape(columns.shape).movedim(0, 1).contiguous()
    else:
        product = (H @ parts.flatten(2)).reshape(parts.shape)
    return torch.view_as_complex(product)


def midpoint(psi: Tensor, H: Tensor, dt: float) -> Tensor:
    """r_k = (psi_{k+1} - psi_k) / dt + i H (psi_{k+1} + psi_k) / 2, [K, N, ...], of states [K+1, N, ...]."""
    return psi.diff(dim=0) / dt + 0.5j * apply(H, psi[1:] + psi[:-1])


def _real(r: Tensor, start: Tensor, w0: float) -> Tensor:
    """Residuals of all steps and of the start, real and imaginary parts one after the other, [M, ...]."""
    r = torch.view_as_real(torch.cat([r, math.sqrt(w0) * start[None]]))
    return r.movedim(-1, 0).flatten(0, 2)


def midpoint_residual(
    net: SpacetimeAR, H: Tensor, times: Tensor, psi0: Tensor, w0: float = 1.0
) -> tuple[Callable[[dict[str, Tensor]], Tensor], Callable[[Tensor], Tensor]]:
    """The least-squares problem whose loss is sum |r_k(s)|^2 + w0 sum |psi(s, 0) - psi0(s)|^2.

    Args:
        net: the ansatz.
        H: real Hamiltonian [2^n, 2^n], sparse or dense.
        times: equidistant times from 0, [K+1].
        psi0: the initial state, complex [2^n].
        w0: weight of the initial condition.

    Returns:
        The residual function, [2 (K+1) 2^n] of a dictionary of parameters, and its Jacobian, [2 (K+1) 2^n, P] of the
        same parameters as one vector: what `levenberg_marquardt` takes.
    """
    check_range("w0", w0, low_open=True)
    grid, dt = Grid(net, len(psi0).bit_length() - 1, times), float(times[1] - times[0])

    def residual(params: dict[str, Tensor]) -> Tensor:
        psi = grid.psi(params)
        return _real(midpoint(psi, H, dt), psi[0] - psi0, w0)

    def jacobian(flat: Tensor) -> Tensor:
        _, derivative = grid.psi_and_derivative(flat)
        return _real(midpoint(derivative, H, dt), derivative[0], w0)

    return residual, jacobian
