"""Optimal input gains: the paper's identities, gradients against autograd, invariances, Levenberg-Marquardt's parts."""

from functools import partial

import pytest
import torch
from scipy.optimize import least_squares

from draws import seeded
from secondlook.optimizers import OIGTrainer, input_gains, owo
from secondlook.optimizers.optimal_input_gain.cost import Sizes
from secondlook.optimizers.optimal_input_gain.data import draw
from secondlook.optimizers.optimal_input_gain.experiment import Path, conditioned
from secondlook.optimizers.optimal_input_gain.lm import fit_lm, jacobian
from secondlook.optimizers.optimal_input_gain.method import (
    ACTIVATIONS,
    ALGORITHMS,
    Network,
    augmented,
    gradient,
    hwo,
    line_step,
    oig_hwo,
    solve,
    whitening,
)

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


@pytest.fixture
def problem():
    """60 rows, 5 inputs, 3 outputs, and a network of 4 hidden units whose output weights are not the best."""
    g = seeded()
    X, T = (torch.randn(60, n, generator=g, dtype=torch.float64) for n in (5, 3))
    network = OIGTrainer(4).start(X, T, g)
    return augmented(X), T, Network(network.W, network.Wo + 0.1)


def parts(problem):
    X, T, network = problem
    _, fprime = network.hidden(X)
    E, W_oh = T - network(X), network.Wo[:, X.shape[1] :]
    return X, E, W_oh, fprime, gradient(X, E, W_oh, fprime)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_is_autograd_s(problem, activation):
    X, T, network = problem
    W = network.W.clone().requires_grad_()
    net = Network(W, network.Wo, activation)
    (T - net(X)).square().sum(1).mean().backward()
    still = Network(network.W, network.Wo, activation)
    close(gradient(X, T - still(X), network.Wo[:, 6:], still.hidden(X)[1]), -W.grad)


def test_the_gains_system_is_the_gauss_newton_system_of_the_gains(problem):
    X, T, network = problem
    *_, G = parts(problem)
    r, H, g = input_gains(*parts(problem))
    J = torch.func.jacrev(lambda r: Network(network.W + G * r, network.Wo)(X))(torch.zeros(6, dtype=X.dtype))
    J = J.reshape(-1, 6)
    close(H, 2 / len(X) * J.T @ J)
    close(g, 2 / len(X) * J.T @ (T - network(X)).flatten())
    close(g, G.square().sum(0))  # the identity: minus the error's derivative by the gains
    close(H @ r, g)


def test_one_gain_for_all_inputs_is_the_line_step(problem):
    X, E, W_oh, fprime, G = parts(problem)
    _, H, g = input_gains(X, E, W_oh, fprime, G)
    close(line_step(X, W_oh, fprime, G, G), g.sum() / H.sum() * G)
    promised, scalar = g @ torch.linalg.solve(H, g) / 2, g.sum() ** 2 / (2 * H.sum())
    assert promised >= scalar  # the model's decrease with all gains is never less
    A = whitening(X.T @ X / len(X))
    D = G @ A.T @ A
    _, H, g = input_gains(X, E, W_oh, fprime, D)
    close(hwo(X, E, W_oh, fprime, A, 1e-10), (G * D).sum() / H.sum() * D)


@pytest.mark.parametrize("condition", [10.0, 1e4])
def test_scaling_the_gradient_is_changing_the_inputs(problem, condition):
    X, E, W_oh, fprime, G = parts(problem)
    A = conditioned(6, condition, seeded(1))
    own = gradient(X @ A.T, E, W_oh, fprime)
    mapped = (problem[2].W @ A.inverse() + 0.3 * own) @ A
    torch.testing.assert_close(mapped, problem[2].W + 0.3 * G @ A.T @ A, rtol=0, atol=1e-14 * condition)


def test_gains_of_whitened_inputs_are_gains_on_other_inputs(problem):
    X, E, W_oh, fprime, _ = parts(problem)
    A = whitening(X.T @ X / len(X))
    white = X @ A.T
    close(white.T @ white / len(X), torch.eye(6, dtype=X.dtype))
    own = gradient(white, E, W_oh, fprime)
    r = input_gains(white, E, W_oh, fprime, own)[0]
    close(oig_hwo(X, E, W_oh, fprime, A, 1e-10), own @ r.diag() @ A)


def test_solves_singular_systems_in_any_units():
    g = seeded()
    B = torch.randn(30, 5, generator=g, dtype=torch.float64)
    B = torch.cat([B, B[:, :1], torch.zeros(30, 1, dtype=B.dtype)], 1)  # a column twice, one of zeros
    b = torch.randn(30, generator=g, dtype=torch.float64)
    best = torch.linalg.lstsq(B[:, :5], b[:, None]).solution
    for units in (torch.ones(7), torch.logspace(-6, 6, 7)):
        C = B * units.double()
        x = solve(C.T @ C, C.T @ b)
        torch.testing.assert_close(C @ x, (B[:, :5] @ best)[:, 0], rtol=1e-8, atol=1e-8)
        assert float(x[6]) == 0


def test_networks_in_a_stack_give_what_each_gives(problem):
    X, _, network = problem
    other = Network(2 * network.W, network.Wo - 0.3)
    stack = Network(torch.stack([network.W, other.W]), torch.stack([network.Wo, other.Wo]))
    close(stack(X), torch.stack([network(X), other(X)]))


def test_owo_leaves_no_error_that_outputs_could_explain(problem):
    X, T, network = problem
    O = network.hidden(X)[0]
    Wo = owo(X, O, T)
    Z = torch.cat([X, O], 1)
    close(Z.T @ (T - Z @ Wo.T), torch.zeros(10, 3, dtype=X.dtype), atol=1e-9)
    close(Wo, torch.linalg.lstsq(Z, T).solution.T, rtol=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_only_goes_down_and_ends_the_same(algorithm):
    X, T = draw("inversion", 200, 0).train
    seen = []
    trainer = OIGTrainer(5, algorithm, iterations=15)
    history = trainer.fit(X, T, callback=lambda i, net: seen.append(net.error(augmented(X), T)), generator=seeded())
    assert all(b <= a for a, b in zip(history.error, history.error[1:], strict=False))
    assert history.error[-1] < 0.97 * history.error[0]
    assert seen == history.error
    assert len(history.trials) == 16
    assert history.error == trainer.fit(X, T, generator=seeded()).error


@pytest.mark.parametrize(
    ("algorithm", "change", "same"),
    [("bp", "units", False), ("oig-bp", "units", True), ("oig-hwo", "units", True), ("hwo", "units", True),
     ("bp", "mixed", False), ("oig-bp", "mixed", False), ("hwo", "mixed", True)],
)  # fmt: skip
def test_what_each_algorithm_does_not_see(algorithm, change, same):
    X, T = draw("inversion", 200, 0).train
    M = torch.logspace(-2, 2, 4, dtype=X.dtype).diag() if change == "units" else conditioned(4, 100.0, seeded(1))
    trainer = OIGTrainer(5, algorithm, iterations=10, rcond=1e-13)
    start = trainer.start(X, T, seeded())
    W = torch.cat([start.W[:, :4] @ M.inverse(), start.W[:, 4:]], 1)
    moved = trainer.fit(X @ M.T, T, trainer.solved(W, augmented(X @ M.T), T)).error
    agreement = abs(moved[-1] / trainer.fit(X, T, start).error[-1] - 1)
    assert agreement < 1e-8 if same else agreement > 1e-4


def test_a_step_that_overshoots_is_halved(monkeypatch):
    X, T = draw("inversion", 200, 0).train
    too_far = lambda *args: 100 * ALGORITHMS["oig-bp"](*args)  # noqa: E731
    monkeypatch.setitem(ALGORITHMS, "bp", too_far)
    history = OIGTrainer(5, "bp", iterations=3).fit(X, T, generator=seeded())
    assert max(history.trials) > 1
    assert history.error[-1] < history.error[0]
    monkeypatch.setitem(ALGORITHMS, "bp", lambda *args: 0 * ALGORITHMS["hwo"](*args))
    stuck = OIGTrainer(5, "bp", iterations=2).fit(X, T, generator=seeded())
    assert stuck.error[0] == stuck.error[2]


def test_constant_and_doubled_inputs_do_no_harm():
    X, T = draw("inversion", 200, 0).train
    more = torch.cat([X, X[:, :1], torch.full((len(X), 1), 3.0, dtype=X.dtype)], 1)
    for algorithm in ALGORITHMS:
        error = OIGTrainer(5, algorithm, iterations=10).fit(more, T, generator=seeded()).error
        assert error[-1] < error[0]


def test_the_jacobian_of_all_weights_is_autograd_s(problem):
    X, _, network = problem
    found = jacobian(network, X)
    by = torch.func.jacrev(lambda W, Wo: Network(W, Wo)(X), argnums=(0, 1))(network.W, network.Wo)
    close(found, torch.cat([b.reshape(180, -1) for b in by], 1))


def test_levenberg_marquardt_ends_where_scipy_s_does():
    """On noisy outputs of a network with one hidden unit, from that network: one minimum is near."""
    g = seeded()
    X = torch.randn(80, 2, generator=g, dtype=torch.float64)
    start = Network(
        torch.tensor([[2.0, -1.0, 0.5]], dtype=X.dtype), torch.tensor([[0.3, 0.1, 0.0, 2.0]], dtype=X.dtype)
    )
    T = start(augmented(X)) + 0.1 * torch.randn(80, 1, generator=g, dtype=X.dtype)
    errors = []
    trace = fit_lm(X, T, start, 60, lambda i, net: errors.append(net.error(augmented(X), T)))
    torch.testing.assert_close(torch.tensor(errors), torch.tensor(trace.losses))

    def residuals(flat):
        W, Wo = torch.from_numpy(flat).split([3, 4])
        return (Network(W[None], Wo[None])(augmented(X)) - T).flatten().numpy()

    theirs = least_squares(residuals, torch.cat([start.W, start.Wo], 1)[0].numpy(), method="lm")
    assert trace.losses[-1] == pytest.approx(2 * theirs.cost / len(X), rel=1e-9)
    assert trace.losses[-1] < 0.99 * trace.losses[0]


def test_costs_are_those_of_the_sizes():
    sizes = Sizes(rows=100, inputs=5, hidden=3, outputs=2)
    assert sizes.weights == 3 * 5 + 2 * 8
    assert sizes.forward == 100 * (15 + 16)
    assert sizes.gains == 100 * 2 * (15 + 3 + 5 + 15) + 9 * 125
    assert sizes.step("oig-bp", 2) - sizes.step("oig-bp", 1) == sizes.forward + sizes.owo
    wide = Sizes(100, 5, 300, 2)
    assert wide.step("oig-bp", 1) - wide.step("bp", 1) < wide.step("bp", 1)  # gains do not grow with hidden^2
    many = Sizes(10_000, 5, 30, 2)
    assert many.lm(1) > 5 * many.step("oig-hwo", 1)
    assert Sizes(10, 50, 30, 1).lm(1) < Sizes(10_000, 50, 30, 1).lm(1) / 100  # few rows: the matrix of rows


def test_a_path_is_read_at_costs_and_errors():
    path = Path([10, 20, 30], [3.0, 2.0, 1.0], [(2.0, 5.0), (1.0, 6.0), (3.0, 7.0)])
    assert path.test == 6.0
    assert path.at_cost(29) == 2.0
    assert path.at_cost(9) != path.at_cost(9)
    assert path.cost_of(2.5) == 20


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_hidden", 0), ("algorithm", "newton"), ("activation", "relu"), ("iterations", -1), ("rcond", 2.0)],
)
def test_bad_options_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        OIGTrainer(**{"n_hidden": 3, name: value})


def test_sizes_that_do_not_fit_are_refused():
    X, T = torch.zeros(5, 2), torch.zeros(5, 1)
    with pytest.raises(ValueError, match="same rows"):
        OIGTrainer(3).fit(X, T[:4])
    with pytest.raises(ValueError, match="takes 4 inputs"):
        OIGTrainer(3).fit(X, T, Network(torch.zeros(3, 5), torch.zeros(1, 8)))
