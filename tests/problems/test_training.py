"""The training loop: it minimises, it stops when it must, and a resumed run is the same run."""

from __future__ import annotations

import gc
import itertools
import math
import warnings

import pytest
import torch
from torch import nn

from draws import seeded
from secondlook.problems import checkpoint, datasets, side_by_side
from secondlook.problems.augment import crop_and_flip
from secondlook.problems.models import digits_cnn, mlp
from secondlook.problems.training import (
    accuracy,
    cosine,
    cross_entropy,
    fit,
    minibatches,
    mse,
    step_decay,
)


class NoisySGD(torch.optim.Optimizer):
    """Momentum in float64, Langevin noise from a stream of its own: state that is easy to lose."""

    def __init__(self, params, lr, generator):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})
        self.generator = generator

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                buffer = state.setdefault("momentum", torch.zeros_like(p, dtype=torch.float64))
                buffer.mul_(group["betas"][0]).add_(p.grad)
                noise = torch.randn(p.shape, generator=self.generator)
                p.sub_(group["lr"] * (buffer.float() + 0.01 * noise))


OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, amsgrad=True),
    "lbfgs": lambda model: torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3, line_search_fn="strong_wolfe"),
    "noisy": lambda model: NoisySGD(model.parameters(), 0.01, seeded(7)),
}


def run(optimizer: str, steps: int, path=None, schedule=None, loss=cross_entropy):
    """A short run of a network with batch norm on augmented digits."""
    data = datasets.load("digits")
    model = digits_cnn((4,), batch_norm=True, generator=seeded(1))
    history = fit(
        model,
        OPTIMIZERS[optimizer](model),
        minibatches(*data.train, 100, seeded(2), augment=lambda x, g: crop_and_flip(x, g, 1)),
        loss,
        steps=steps,
        every=7,
        schedule=schedule,
        closure=optimizer == "lbfgs",
        evaluate=lambda m: {"accuracy": accuracy(m, *data.val)},
        checkpoint=path,
    )
    return model, history


# ------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_run_is_bit_identical(tmp_path, optimizer):
    schedule = cosine(28, warmup=5)
    whole_model, whole = run(optimizer, 28, schedule=schedule)
    run(optimizer, 14, tmp_path / "run.safetensors", schedule)
    model, history = run(optimizer, 28, tmp_path / "run.safetensors", schedule)
    assert history == whole
    for key, value in whole_model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_killed_run_resumes_from_its_last_row(tmp_path):
    """Killed between two rows: the steps since the last row are done again, to the same end."""
    path = tmp_path / "run.safetensors"
    calls = []

    def dies(model, batch):
        calls.append(batch)
        if len(calls) == 18:
            raise KeyboardInterrupt
        return cross_entropy(model, batch)

    with pytest.raises(KeyboardInterrupt):
        run("adamw", 21, path, loss=dies)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    model, history = run("adamw", 21, path)
    whole_model, whole = run("adamw", 21)
    assert history == whole
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole_model.parameters(), strict=True))


def test_finished_run_is_not_repeated(tmp_path):
    path = tmp_path / "run.safetensors"
    _, first = run("sgd", 10, path)

    def never(model, batch):
        raise AssertionError("a finished run took another step")

    assert run("sgd", 10, path, loss=never)[1] == first


def test_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    run("sgd", 3, path)
    model = mlp([64, 10])
    data = datasets.load("digits")
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"(?s)checkpoint of another run.*delete it"):
        fit(model, sgd, minibatches(*data.train, 10, seeded()), cross_entropy, steps=5, checkpoint=path)
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"is not a checkpoint.*delete it"):
        run("sgd", 5, path)


def test_checkpoint_needs_batches_that_can_be_resumed(tmp_path):
    model = mlp([2, 1])
    batches = [(torch.zeros(1, 2), torch.zeros(1, 1))] * 3
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="use minibatches"):
        fit(model, sgd, batches, mse, steps=3, checkpoint=tmp_path / "run.safetensors")


def test_checkpoint_keeps_nested_state_exactly(tmp_path):
    shared = torch.arange(6.0)
    state = {
        "view": shared[::2],
        "same": shared,
        "float64": torch.tensor(1 / 3, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "list": [1, 0.1, None, True, "text", (2, [shared.reshape(2, 3)])],
        0: {"nan": math.nan, "inf": -math.inf},
        "a": {"b.c": torch.zeros(1)},
        "a.b": {"c": torch.ones(1)},
    }
    checkpoint.write(tmp_path / "deep" / "state.safetensors", state)
    back = checkpoint.read(tmp_path / "deep" / "state.safetensors")
    assert list(back) == list(state)
    for key in ("view", "same", "float64", "empty"):
        assert torch.equal(back[key], state[key])
        assert back[key].dtype == state[key].dtype
    assert back["list"][:5] == state["list"][:5]
    assert isinstance(back["list"][5], tuple)
    assert torch.equal(back["list"][5][1][0], shared.reshape(2, 3))
    assert math.isnan(back[0]["nan"])
    assert back[0]["inf"] == -math.inf
    assert (back["a"]["b.c"], back["a.b"]["c"]) == (torch.zeros(1), torch.ones(1))


def test_checkpoint_names_what_it_cannot_hold_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "state.safetensors"
    checkpoint.write(path, {"step": 1})
    with pytest.raises(TypeError, match=r"state\.group\.hook is a function"):
        checkpoint.write(path, {"group": {"hook": seeded}})
    with pytest.raises(TypeError, match=r"key 1\.5"):
        checkpoint.write(path, {1.5: 0})
    assert checkpoint.read(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


# ------------------------------------------------------------------------------------------- the loop


def quadratic(steps: int, **options):
    """Plain gradient descent on ‖w‖²/2 from (1, 1) at rate 0.1: w = 0.9^steps."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    sgd = torch.optim.SGD(model.parameters(), lr=options.pop("lr", 0.1))
    batches = iter(lambda: None, 0)
    return model, sgd, fit(model, sgd, batches, lambda m, _: m.weight.square().sum() / 2, steps=steps, **options)


def test_steps_are_gradient_descent():
    model, _, history = quadratic(20, every=5)
    torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), 0.9**20))
    assert [row["step"] for row in history.rows] == [5, 10, 15, 20]
    losses = [0.81**k for k in range(20)]  # before each update
    expected = [sum(losses[a : a + 5]) / 5 for a in range(0, 20, 5)]
    assert history.column("loss") == pytest.approx(expected, rel=1e-5)
    assert (history.steps, history.diverged) == (20, False)


def test_last_row_is_recorded_off_the_beat():
    _, _, history = quadratic(7, every=5, evaluate=lambda m: {"norm": m.weight.norm()})
    assert [row["step"] for row in history.rows] == [5, 7]
    assert history.last("norm") == pytest.approx(2**0.5 * 0.9**7)
    assert math.isnan(history.last("unheard of"))


def test_schedule_multiplies_and_restores_the_rate():
    model, sgd, _ = quadratic(3, schedule=lambda step: [1.0, 0.5, 0.0][step])
    torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), 0.9 * 0.95))
    assert sgd.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("every", [None, 1, 30])
def test_explosion_stops_early(every):
    _, _, history = quadratic(1000, lr=30.0, every=every, evaluate=lambda m: {"norm": m.weight.norm()})
    assert history.diverged
    assert history.steps <= 50
    assert history.rows[-1]["step"] == history.steps
    assert math.isnan(history.last("norm"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_loss_stops_even_at_the_first_step(value):
    model = nn.Linear(1, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    history = fit(model, sgd, iter(lambda: None, 0), lambda m, _: m.weight.sum() * value, steps=500)
    assert history.diverged
    assert history.steps == 50


def test_parameters_lost_in_the_last_step_are_noticed():
    _, _, history = quadratic(1, lr=math.inf, evaluate=lambda m: pytest.fail("evaluated a lost model"))
    assert history.diverged
    assert history.last("loss") is not None


class Factorising(torch.optim.SGD):
    """Factorises a matrix in every step: weightᵀ weight - shift."""

    shift = 0.0

    def step(self, closure=None):
        weight = self.param_groups[0]["params"][0].detach()
        torch.linalg.cholesky(weight.T @ weight + (0.1 - self.shift) * torch.eye(2))
        super().step()


def test_factorisation_that_fails_for_lost_numbers_is_divergence():
    model = nn.Linear(2, 2, bias=False)
    optimizer = Factorising(model.parameters(), lr=0.1)
    history = fit(model, optimizer, iter(lambda: None, 0), lambda m, _: m.weight.sum() * math.nan, steps=9)
    assert history.diverged
    assert history.steps == 2  # the second step meets the NaN that the first one made


def test_factorisation_that_fails_otherwise_is_an_error():
    model = nn.Linear(2, 2, bias=False)
    optimizer = Factorising(model.parameters(), lr=0.1)
    optimizer.shift = 1e3
    with pytest.raises(torch.linalg.LinAlgError):
        fit(model, optimizer, iter(lambda: None, 0), lambda m, _: m.weight.sum(), steps=9)


def test_graph_lets_the_optimizer_differentiate_again_and_frees_it():
    """Newton's method from Hessian-vector products solves a quadratic in one step."""
    matrix = torch.tensor([[3.0, 1.0], [1.0, 2.0]])

    class Newton(torch.optim.SGD):
        def step(self, closure=None):
            (w,) = self.param_groups[0]["params"]
            rows = [torch.autograd.grad(w.grad[0, i], w, retain_graph=True)[0][0] for i in range(2)]
            w.data -= torch.linalg.solve(torch.stack(rows), w.grad[0].detach())

    model = nn.Linear(2, 1, bias=False)
    unused = nn.Parameter(torch.ones(1))
    model.register_parameter("unused", unused)
    newton = Newton([model.weight], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns of the reference cycle of create_graph
        fit(
            model,
            newton,
            iter(lambda: None, 0),
            lambda m, _: (m.weight @ matrix @ m.weight.T).sum(),
            steps=1,
            graph=True,
        )
    assert model.weight.abs().max() < 1e-6
    assert model.weight.grad is None
    assert unused.grad is None


def test_no_graph_survives_a_run():
    def tensors() -> int:
        gc.collect()
        return sum(isinstance(entry, torch.Tensor) for entry in gc.get_objects())

    quadratic(5, graph=True)
    before = tensors()
    quadratic(50, graph=True)
    assert tensors() == before


def test_closure_serves_lbfgs():
    data = datasets.load("diabetes").train
    model = mlp([10, 1], generator=seeded()).double()
    x, y = data.x.double(), data.y.double()
    lbfgs = torch.optim.LBFGS(model.parameters(), max_iter=50, line_search_fn="strong_wolfe", tolerance_grad=1e-12)
    fit(model, lbfgs, minibatches(x, y, len(x), seeded()), mse, steps=5, closure=True)
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    best = torch.linalg.lstsq(design, y, driver="gelsd").solution
    assert mse(model, (x, y)).item() == pytest.approx((design @ best - y).square().mean().item(), rel=1e-8)


def test_closure_can_build_the_graph_too():
    class Curved(torch.optim.SGD):
        def step(self, closure=None):
            closure()
            self.graphs = [p.grad.requires_grad for group in self.param_groups for p in group["params"]]

    optimizer = Curved((model := nn.Linear(2, 1, dtype=torch.float64)).parameters(), lr=1)
    batch = torch.ones(4, 2, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)
    fit(model, optimizer, itertools.repeat(batch), mse, steps=1, graph=True, closure=True)
    assert all(optimizer.graphs)


def test_the_graph_is_built_at_the_steps_that_want_it():
    class Alternating(torch.optim.SGD):
        wants_graph, graphs = False, []

        def step(self):
            self.graphs.append(self.param_groups[0]["params"][0].grad.requires_grad)
            self.wants_graph = not self.wants_graph

    model = nn.Linear(2, 1)
    fit(
        model,
        optimizer := Alternating(model.parameters(), lr=1),
        [(torch.ones(4, 2), torch.ones(4, 1))] * 4,
        mse,
        steps=4,
        graph=True,
    )
    assert optimizer.graphs == [False, True, False, True]


def test_closure_never_called_is_an_error():
    class Idle(torch.optim.SGD):
        def step(self, closure=None):
            return None

    model = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match=r"Idle\.step did not call the closure"):
        fit(model, Idle(model.parameters(), lr=1), iter(lambda: None, 0), lambda m, _: None, steps=1, closure=True)


def test_training_mode_comes_back_after_evaluation():
    modes = []

    def loss(model, batch):
        modes.append(model.training)
        return model.weight.sum()

    model = nn.Linear(1, 1).eval()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, sgd, iter(lambda: None, 0), loss, steps=4, every=1, evaluate=lambda m: {"x": float(m.eval().training)})
    assert modes == [True] * 4


def test_progress_sees_every_step():
    seen = []

    def track(iterable, label):
        assert label == "steps"
        for step in iterable:
            seen.append(step)
            yield step

    quadratic(4, track=track)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps=-1"),
        ({"steps": 1, "every": 0}, "every=0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        quadratic(**options)


def test_no_steps_change_nothing():
    model, _, history = quadratic(0)
    assert history.rows == []
    assert torch.equal(model.weight.detach(), torch.ones(1, 2))
    assert math.isnan(history.last("loss"))


# ------------------------------------------------------------------------------------------- parts


def test_minibatches_visit_every_row_once_an_epoch():
    x = torch.arange(12)
    batches = minibatches(x, -x, 3, seeded())
    assert batches.steps_per_epoch == 4
    epochs = []
    for _ in range(3):
        pairs = [next(batches) for _ in range(4)]
        assert all(torch.equal(a, -b) for a, b in pairs)
        epochs.append(torch.cat([a for a, _ in pairs]))
    assert all(torch.equal(epoch.sort().values, x) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_minibatches_keep_one_size():
    batches = minibatches(torch.arange(10), torch.arange(10), 4, seeded())
    sizes = {len(next(batches)[0]) for _ in range(25)}
    assert sizes == {4}


def test_minibatches_leave_the_global_stream_alone():
    before = torch.get_rng_state()
    next(minibatches(torch.arange(5), torch.arange(5), 2, seeded()))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("size", [0, 6])
def test_minibatches_refuse_impossible_sizes(size):
    with pytest.raises(ValueError, match=r"1\.\.5"):
        minibatches(torch.arange(5), torch.arange(5), size, seeded())
    with pytest.raises(ValueError, match="must match"):
        minibatches(torch.arange(5), torch.arange(4), 2, seeded())


def test_losses_and_accuracy():
    model = nn.Identity()
    scores = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    y = torch.tensor([0, 1, 1, 0])
    expected = -scores.log_softmax(1)[range(4), y].mean()
    torch.testing.assert_close(cross_entropy(model, (scores, y)), expected)
    torch.testing.assert_close(cross_entropy(model, (scores[None], y[None])), expected)  # sequences
    assert accuracy(model, scores, y) == accuracy(model, scores, y, batch_size=3) == 75.0
    assert mse(model, (torch.zeros(4, 1), torch.full((4, 1), 2.0))) == 4
    with pytest.raises(ValueError, match="same shape"):
        mse(model, (torch.zeros(4, 1), torch.zeros(4)))


def test_accuracy_measures_in_evaluation_mode_and_puts_the_mode_back():
    model = nn.Sequential(nn.Dropout(0.9999)).train()
    scores = torch.eye(10).repeat(20, 1)
    assert accuracy(model, scores, scores.argmax(1)) == 100.0
    assert model.training


def test_schedules():
    multiplier = cosine(110, warmup=10)
    assert [multiplier(s) for s in (0, 4, 9, 10, 60, 110, 500)] == pytest.approx([0.1, 0.5, 1, 1, 0.5, 0, 0])
    drop = step_decay([80, 120])
    assert [drop(s) for s in (0, 79, 80, 119, 120)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_networks_side_by_side_have_the_outputs_and_gradients_of_each():
    nets = [mlp((4, 6, 3), nn.Tanh, torch.Generator().manual_seed(i)) for i in range(3)]
    x = torch.randn(3, 5, 2, 2)
    together = side_by_side.outputs(nets, x)
    together.square().sum().backward()
    for net, own, out in zip(nets, x, together, strict=True):
        torch.testing.assert_close(net(own), out, rtol=1e-6, atol=1e-7)
        found = torch.autograd.grad(net(own).square().sum(), list(net.parameters()))
        torch.testing.assert_close([p.grad for p in net.parameters()], list(found))
    assert side_by_side.fit_each([nn.Linear(2, 2)], None, [], evaluate=dict, steps=1) is None
