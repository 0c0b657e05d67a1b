"""The space-time network against dense quantum mechanics: propagators, Jacobians, closed forms of one spin."""

import math

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch.func import jacrev

from secondlook.curvature.flat import pack, unpack
from secondlook.optimizers.least_squares import levenberg_marquardt
from secondlook.optimizers.spacetime_nn import (
    Grid,
    SpacetimeAR,
    cayley,
    exact,
    infidelity,
    magnetisation_x,
    midpoint,
    midpoint_residual,
    tdvp,
    tfim,
)
from secondlook.optimizers.spacetime_nn import experiment as quenches
from secondlook.optimizers.spacetime_nn.method import apply

X, Z, I = (torch.tensor(m, dtype=torch.float64) for m in ([[0, 1], [1, 0]], [[1, 0], [0, -1]], [[1, 0], [0, 1]]))


def network(n=3, hidden=6, depth=2, seed=0, **options):
    return SpacetimeAR(n, hidden, depth, generator=torch.Generator().manual_seed(seed), **options)


def shaken(net, seed=1):
    """The same network with large weights."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(2 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return net


def times(steps, final=1.0):
    return torch.linspace(0, final, steps + 1, dtype=torch.float64)


def even(n):
    return torch.full((2**n,), 2 ** (-n / 2), dtype=torch.complex128)


def kron(*factors):
    out = torch.ones(1, 1, dtype=torch.float64)
    for f in factors:
        out = torch.kron(out, f)
    return out


@pytest.mark.parametrize(("n", "periodic"), [(1, True), (2, False), (3, True), (5, True), (4, False)])
def test_the_chain_equals_its_kronecker_products(n, periodic):
    dense = torch.zeros(2**n, 2**n, dtype=torch.float64)
    for i in range(n):
        dense -= 0.7 * kron(*[X if j == i else I for j in range(n)])
        if n > 1 and (periodic or i < n - 1):
            dense -= 1.3 * kron(*[Z if j in (i, (i + 1) % n) else I for j in range(n)])
    torch.testing.assert_close(tfim(n, 1.3, 0.7, periodic).to_dense(), dense, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_it_is_normalised_at_any_time_and_weights(n):
    net = shaken(network(n, max(n, 7)))
    psi = Grid(net, n, torch.tensor([-3.0, 0.0, 0.4, 11.0]).double()).psi(dict(net.named_parameters()))
    np.testing.assert_allclose((psi.abs() ** 2).sum(1).detach(), 1, rtol=0, atol=1e-12)


def test_each_conditional_depends_on_earlier_spins_only():
    net, t = shaken(network(4, 9)), torch.tensor(0.3, dtype=torch.float64)

    def logits(s):
        h = torch.cat([1 - 2 * s, t[None]])
        for i, layer in enumerate(net.amplitude):
            h = torch.nn.functional.linear(h.tanh() if i else h, layer.weight * getattr(net, f"mask{i}"), layer.bias)
        return h

    J = jacrev(logits)(torch.full((4,), 0.5, dtype=torch.float64))
    assert torch.equal(J.triu(), torch.zeros(4, 4, dtype=torch.float64))
    assert bool((J.tril(-1)[1:] != 0).any(1).all())


def test_the_cayley_states_solve_the_mid_point_rule_and_the_exact_ones_to_second_order():
    H, psi0 = tfim(4), even(4)
    grids = [times(steps) for steps in (20, 40, 80)]
    for grid in grids:
        states = cayley(H, psi0, grid)
        assert float(midpoint(states, H, float(grid[1])).abs().max()) < 1e-12
    errors = [float(midpoint(exact(H, psi0, grid), H, float(grid[1])).abs().max()) for grid in grids]
    slopes = -np.diff(np.log2(errors))
    assert slopes == pytest.approx([2, 2], abs=0.1)


def test_the_reference_is_unitary_conserves_energy_and_equals_scipy_s():
    H, psi0 = tfim(5, 1.0, 0.6), even(5)
    for evolve in (exact, cayley):
        states = evolve(H, psi0, times(20))
        energy = (states.conj() * (states @ H.to_dense().to(states.dtype))).sum(1).real
        np.testing.assert_allclose((states.abs() ** 2).sum(1), 1, rtol=0, atol=1e-12)
        np.testing.assert_allclose(energy, energy[0], rtol=0, atol=1e-12)
    peer = scipy.sparse.linalg.expm_multiply(-1j * H.to_dense().numpy(), psi0.numpy(), 0, 1, 21)
    np.testing.assert_allclose(exact(H, psi0, times(20)), peer, rtol=0, atol=1e-11)


def test_the_jacobian_equals_automatic_differentiation():
    net = shaken(network(2, 5))
    H, grid = tfim(2).to_dense(), times(4)
    params = dict(net.named_parameters())
    residual, jacobian = midpoint_residual(net, H, grid, even(2), 7.0)
    flat = pack(params.values()).detach()
    slow = jacrev(lambda f: residual(dict(zip(params, unpack(f, list(params.values())), strict=True))))(flat)
    torch.testing.assert_close(jacobian(flat), slow, rtol=0, atol=1e-11)


def test_one_spin_in_a_transverse_field_follows_its_cosine():
    H, grid, psi0 = tfim(1, g=0.8), times(8), torch.tensor([1, 0], dtype=torch.complex128)
    z = (exact(H, psi0, grid).abs() ** 2 @ torch.tensor([1.0, -1.0]).double()).numpy()
    np.testing.assert_allclose(z, np.cos(1.6 * grid.numpy()), rtol=0, atol=1e-12)
    tilted = torch.tensor([math.cos(0.3), math.sin(0.3)], dtype=torch.complex128)
    net = network(1, 5, 1, energy=0.8)
    residual, jacobian = midpoint_residual(net, H.to_dense(), grid, tilted, 100.0)
    found = levenberg_marquardt(residual, dict(net.named_parameters()), 1.0, 60, jacobian=jacobian)
    psi = Grid(net, 1, grid).psi(found.params)
    wanted = math.cos(0.6) * np.cos(1.6 * grid.numpy())
    np.testing.assert_allclose((psi[:, 0].abs() ** 2 - psi[:, 1].abs() ** 2), wanted, rtol=0, atol=1e-2)
    assert found.losses[-1] < 1e-3 * found.losses[0]
    assert float(infidelity(psi, exact(H, tilted, grid)).max()) < 1e-4


def test_the_variational_principle_is_exact_where_the_network_is_wide_enough():
    H, grid = tfim(2, g=0.5).to_dense(), times(5, 0.2)
    net = shaken(network(2, 8))
    start = Grid(net, 2, grid[:1]).psi(dict(net.named_parameters()))[0].detach()
    truth = exact(H, start, grid)
    coarse, fine = (infidelity(tdvp(net, H, grid, 1e-14, k)[-1], truth[-1]) for k in (1, 6))
    assert float(fine) < 1e-6
    assert float(fine) < float(coarse) + 1e-12


def test_evolutions_at_once_are_those_one_by_one():
    nets, H, grid = [shaken(network(2, 5, seed=i)) for i in (0, 1)], tfim(2).to_dense(), times(4)
    starts, cuts = torch.stack([pack(net.parameters()).detach() for net in nets]), torch.tensor([1e-3, 1e-8]).double()
    together = tdvp(nets[0], H, grid, cuts, 2, starts)
    for net, cut, states in zip(nets, cuts.tolist(), together, strict=True):
        torch.testing.assert_close(states, tdvp(net, H, grid, cut, 2), rtol=0, atol=1e-9)


def test_sparse_and_dense_chains_act_alike():
    psi = torch.randn(5, 8, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    H = tfim(3, 1.0, 0.7)
    for states in (psi, psi[..., 0]):
        product = torch.einsum("ij,kj...->ki...", H.to_dense().to(psi.dtype), states)
        for form in (H, H.to_dense()):
            torch.testing.assert_close(apply(form, states), product, rtol=0, atol=1e-12)


def test_infidelity_and_magnetisation():
    a, b = even(3), torch.zeros(8, dtype=torch.complex128)
    b[0] = 1j
    assert float(infidelity(a, b)) == pytest.approx(1 - 1 / 8, abs=1e-14)
    assert float(infidelity(a, a * (0.6 + 0.8j))) < 1e-30
    assert float(magnetisation_x(a)) == pytest.approx(1, abs=1e-14)
    assert float(magnetisation_x(b)) == pytest.approx(0, abs=1e-14)


def test_networks_train_together_as_they_do_alone():
    quench = quenches.Quench.of(2, 1.0, 4, 100.0, "cpu")
    nets = lambda: [quench.network("adam", seed, 4, 1) for seed in (0, 1)]  # noqa: E731
    together = quenches.first_order(quench, nets(), 20, 10, [0.05, 0.1])
    for i, net in enumerate(nets()):
        (alone,), (curve,) = quenches.first_order(quench, [net], 20, 10, [0.05 * (i + 1)])
        torch.testing.assert_close(together[0][i], alone, rtol=0, atol=1e-9)
        np.testing.assert_allclose(together[1][i], curve, rtol=1e-8)


def test_without_a_phase_the_state_is_positive_and_bad_options_are_named():
    net = network(3, complex_phase=False)
    psi = Grid(net, 3, times(3)).psi(dict(net.named_parameters()))
    assert bool((psi.imag == 0).all())
    assert bool((psi.real > 0).all())
    with pytest.raises(ValueError, match="hidden"):
        network(5, 4)
    with pytest.raises(ValueError, match="w0"):
        midpoint_residual(net, tfim(3), times(3), even(3), 0.0)
