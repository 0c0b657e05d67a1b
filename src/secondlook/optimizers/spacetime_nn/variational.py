"""What the space-time network is compared with: exact evolutions, and the time-dependent variational principle."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from secondlook.curvature.flat import pack
from secondlook.optimizers.spacetime_nn.method import Grid, SpacetimeAR, apply


def exact(H: Tensor, psi0: Tensor, times: Tensor) -> Tensor:
    """exp(-i t H) psi0 at all times, [K+1, N], by diagonalisation."""
    energies, states = torch.linalg.eigh(H.to_dense())
    along = states.mT.to(psi0.dtype) @ psi0
    return torch.exp(-1j * times[:, None] * energies) * along @ states.mT.to(psi0.dtype)


def cayley(H: Tensor, psi0: Tensor, times: Tensor) -> Tensor:
    """What the mid-point rule itself gives, (1 + i dt H/2) psi_{k+1} = (1 - i dt H/2) psi_k, [K+1, N]."""
    energies, states = torch.linalg.eigh(H.to_dense())
    half = 0.5j * (times[1] - times[0]) * energies
    steps = torch.arange(len(times), device=times.device)[:, None]
    along = states.mT.to(psi0.dtype) @ psi0
    return ((1 - half) / (1 + half)) ** steps * along @ states.mT.to(psi0.dtype)


def infidelity(a: Tensor, b: Tensor) -> Tensor:
    """1 - |<a|b>|^2 for normalised states [..., N], as |a - b e^(i arg <b|a>)|^2 (1 + |<a|b>|) / 2: nothing cancels."""
    overlap = (b.conj() * a).sum(-1, keepdim=True)
    phase = overlap / overlap.abs().clamp_min(1e-300)
    distance = ((a - b * phase).abs() ** 2).sum(-1)
    return distance * (1 + overlap.abs().squeeze(-1)) / 2


def magnetisation_x(psi: Tensor) -> Tensor:
    """Mean of <X_i> over the spins, [...], of states [..., 2^n]."""
    n = psi.shape[-1].bit_length() - 1
    rows = torch.arange(psi.shape[-1], device=psi.device)
    flips = [(psi.conj() * psi[..., rows ^ (1 << i)]).sum(-1).real for i in range(n)]
    return torch.stack(flips).mean(0)


@torch.no_grad()
def tdvp(
    net: SpacetimeAR,
    H: Tensor,
    times: Tensor,
    rcond: float | Tensor = 1e-6,
    substeps: int = 1,
    weights: Tensor | None = None,
) -> Tensor:
    """Evolve the weights at t = 0 by the variational principle (McLachlan 1964) with RK4; states [K+1, 2^n].

    Weights move so that their state follows -i H psi as closely as it can, up to a phase: S w' = Im <d psi|H psi>, with
    S = Re <d psi|d psi> and d psi without its part along psi. Singular values of d psi below sqrt(rcond) of the largest
    are left out. `net` is not changed; its inputs of time see 0 and stay as they are.

    With `weights`, [R, P] in the order of the net's parameters, and `rcond`, [R], R evolutions at once: [R, K+1, 2^n].
    """
    n = H.shape[0].bit_length() - 1
    grid = Grid(net, n, times[:1] * 0)

    def velocity(flat: Tensor, rcond: float | Tensor) -> tuple[Tensor, Tensor]:
        """w' at weights w, and their state."""
        psi, derivative = (x[0] for x in grid.psi_and_derivative(flat))
        derivative = derivative - torch.outer(psi, psi.conj() @ derivative)
        wanted = -1j * apply(H, psi[None])[0]
        wanted = wanted - psi * (psi.conj() @ wanted)
        J = torch.cat([derivative.real, derivative.imag])
        values, vectors = torch.linalg.eigh(J @ J.mT)
        inverse = torch.where(values > rcond * values[-1], 1 / values, 0)
        return J.mT @ (vectors @ (inverse * (vectors.mT @ torch.cat([wanted.real, wanted.imag])))), psi

    h = float(times[1] - times[0]) / substeps

    def evolve(flat: Tensor, rcond: float | Tensor) -> Tensor:
        states = []
        for _ in range(substeps * (len(times) - 1)):
            a, psi = velocity(flat, rcond)
            b, _ = velocity(flat + h / 2 * a, rcond)
            c, _ = velocity(flat + h / 2 * b, rcond)
            d, _ = velocity(flat + h * c, rcond)
            flat = flat + h / 6 * (a + 2 * b + 2 * c + d)
            states.append(psi)
        return torch.stack([*states[::substeps], grid.psi_and_derivative(flat)[0][0]])

    return evolve(pack(net.parameters()).detach(), rcond) if weights is None else vmap(evolve)(weights, rcond)
