"""What every optimizer of the family must do, whatever its rule. Add a factory to `FACTORIES` to join."""

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from draws import seeded
from secondlook.optimizers import (
    FISMO,
    FOSI,
    KFAC,
    MFAC,
    MKOR,
    OASIS,
    SAM,
    SGDP,
    AdaFisher,
    AdaHessian,
    AdamP,
    AuON,
    INNAprop,
    Muon,
    Shampoo,
    Sophia,
    benchmark,
    overhead,
)
from secondlook.optimizers.factor import cholesky
from secondlook.optimizers.trial import started
from secondlook.problems import tasks
from secondlook.problems.training import History, fit
from secondlook.suite.errors import SecondLookError
from stand_in_gpu import stand_in_gpu

pytestmark = pytest.mark.filterwarnings("ignore:Using backward:UserWarning")


@dataclass(frozen=True)
class Factory:
    """How to make one optimizer, and what to expect of it."""

    name: str
    make: Callable[..., torch.optim.Optimizer]  # (params, **options)
    lr: float  # a step size that makes progress on the harness's problems
    invalid: tuple[tuple[str, Any], ...]  # (option, bad value): the error must name the option
    random: bool = False  # draws random numbers: takes `generator=`
    maximize: bool = True


def fosi(params: Any, lr: float, *, maximize: bool = False, **options: Any) -> FOSI:
    """FOSI on heavy ball, with fresh eigenpairs at steps 2, 4, ..."""
    return FOSI(torch.optim.SGD(params, lr, momentum=0.9, maximize=maximize), **{"k": 2, "every": 2, **options})


def adafisher(params: Any, lr: float, **options: Any) -> AdaFisher:
    """AdaFisher; the harness's parameters belong to no layer, so F = 1. Its own tests have layers."""
    return AdaFisher(nn.Module(), lr, params=params, **options)


def mkor(params: Any, lr: float, **options: Any) -> MKOR:
    """MKOR; the harness's parameters belong to no layer, so this is its base. Its own tests have layers."""
    return MKOR(nn.Module(), lr=lr, params=params, **options)


def kfac(params: Any, lr: float, **options: Any) -> KFAC:
    """K-FAC without a limit; the harness's parameters belong to no layer, so this is heavy ball."""
    return KFAC(nn.Module(), lr=lr, params=params, **{"kl_clip": math.inf} | options)


FACTORIES = [
    Factory(
        "adafisher",
        adafisher,
        lr=0.1,
        invalid=(
            ("lr", -1.0),
            ("lr", float("nan")),
            ("beta", 1.0),
            ("damping", 0.0),
            ("gamma", 1.5),
            ("every", 0),
            ("weight_decay", -0.1),
            ("ema", "both"),
        ),
    ),
    Factory(
        "adahessian",
        AdaHessian,
        lr=0.15,
        invalid=(
            ("lr", -1.0),
            ("lr", float("nan")),
            ("betas", (0.9, 1.0)),
            ("betas", (-0.1, 0.9)),
            ("eps", 0.0),
            ("eps", -1e-8),
            ("weight_decay", -0.1),
            ("hessian_power", 1.5),
            ("n_probes", 0),
            ("n_probes", 1.5),
            ("update_every", 0),
        ),
        random=True,
    ),
    Factory(
        "adamp",
        AdamP,
        lr=0.1,
        invalid=(
            ("lr", -1.0),
            ("lr", float("nan")),
            ("betas", (0.9, 1.0)),
            ("betas", (0.9,)),
            ("eps", 0.0),
            ("weight_decay", -0.1),
            ("delta", -0.1),
            ("wd_ratio", -1.0),
        ),
    ),
    Factory(
        "sgdp",
        SGDP,
        lr=0.05,
        invalid=(("lr", -1.0), ("momentum", 1.0), ("dampening", 1.5), ("weight_decay", -0.1), ("delta", float("inf"))),
    ),
    Factory(
        "fosi",
        fosi,
        lr=0.02,
        invalid=(
            ("k", -1),
            ("l", 0.5),
            ("every", 0),
            ("warmup", 0),
            ("order", 0),
            ("alpha", 0.0),
            ("alpha", 1.5),
            ("lr_clip", 0.5),
            ("momentum", "heavy"),
            ("decay", 1.0),
        ),
        random=True,
        maximize=False,
    ),
    Factory(
        "oasis",
        OASIS,
        lr=1.0,
        invalid=(
            ("lr", -1.0),
            ("lr", float("inf")),
            ("beta2", 1.0),
            ("alpha", 0.0),
            ("eta0", 0.0),
            ("eta0", float("nan")),
            ("warmup_probes", 0),
        ),
        random=True,
    ),
    Factory(
        "mfac",
        partial(MFAC, n_grads=32, damp=0.1),
        lr=0.1,
        invalid=(
            ("lr", -1.0),
            ("lr", float("nan")),
            ("n_grads", 0),
            ("n_grads", 1.5),
            ("damp", 0.0),
            ("damp", float("inf")),
            ("momentum", 1.0),
            ("weight_decay", -0.1),
        ),
    ),
    Factory(
        "kfac",
        kfac,
        lr=0.01,
        invalid=(
            ("lr", -1.0),
            ("lr", float("nan")),
            ("damping", 0.0),
            ("momentum", 1.0),
            ("every", 0),
            ("kl_clip", 0.0),
            ("decay", 1.0),
        ),
    ),
    Factory(
        "mkor",
        mkor,
        lr=0.1,
        invalid=(
            ("lr", -1.0),
            ("lr", float("nan")),
            ("base", "rmsprop"),
            ("momentum", 1.0),
            ("gamma", 0.0),
            ("every", 0),
            ("rule", "best"),
            ("stabiliser", 1.5),
            ("threshold", 0.0),
            ("warmup", -1),
        ),
    ),
    Factory("mkor-adam", partial(mkor, base="adam"), lr=0.1, invalid=()),
    Factory("mkor-lamb", partial(mkor, base="lamb"), lr=0.05, invalid=()),
    Factory(
        "sophia",
        # Decay would move weights without a gradient, and 150 steps fill slow averages only halfway.
        partial(Sophia, weight_decay=0.0, betas=(0.9, 0.9), update_every=2),
        lr=0.04,
        invalid=(
            ("lr", -1.0),
            ("lr", float("nan")),
            ("betas", (0.9, 1.0)),
            ("betas", (0.9,)),
            ("rho", 0.0),
            ("eps", 0.0),
            ("weight_decay", -0.1),
            ("update_every", 0),
            ("update_every", 2.5),
        ),
        random=True,
    ),
    Factory(
        "sam",
        partial(SAM, base_optimizer=torch.optim.SGD, rho=0.05),
        lr=0.1,
        invalid=(("rho", -0.1), ("rho", float("nan")), ("rho", float("inf"))),
    ),
    Factory(
        "innaprop",
        partial(INNAprop, weight_decay=0.0),  # the harness asks for rest where the gradient is zero
        lr=0.1,
        invalid=(
            ("lr", -1.0),
            ("lr", float("nan")),
            ("alpha", -0.1),
            ("beta", 0.0),
            ("sigma", 1.0),
            ("eps", 0.0),
            ("weight_decay", -0.1),
        ),
    ),
    Factory("auon-printed", partial(AuON, normalise=True, gamma=1.0, aspect=True), lr=0.05, invalid=()),
    Factory("auon-hybrid", partial(AuON, hybrid=True), lr=0.1, invalid=(("normalise", True),)),
    Factory(
        "auon",
        AuON,
        lr=0.5,
        invalid=(
            ("lr", -1.0),
            ("lr", float("nan")),
            ("momentum", 1.0),
            ("weight_decay", -0.1),
            ("gamma", -1.0),
            ("ns_steps", 0),
        ),
    ),
    Factory(
        "muon",
        Muon,
        lr=0.1,
        invalid=(("lr", -1.0), ("momentum", 1.0), ("weight_decay", -0.1), ("ns_steps", 0.5), ("adjust_lr_fn", "best")),
    ),
    Factory(
        "fismo",
        partial(FISMO, every=2),
        lr=0.1,
        invalid=(
            ("lr", -1.0),
            ("lr", float("nan")),
            ("beta", 1.0),
            ("gamma", 1.0),
            ("damping", 0.0),
            ("every", 0),
            ("polar", "qr"),
            ("weight_decay", -0.1),
        ),
    ),
    Factory(
        "shampoo",
        partial(Shampoo, block_size=8, root_every=2),  # small blocks, so that the harness's shapes are preconditioned
        lr=0.05,
        invalid=(
            ("lr", -1.0),
            ("lr", float("nan")),
            ("momentum", 1.0),
            ("beta2", 0.0),
            ("beta2", 1.5),
            ("eps", 0.0),
            ("block_size", 0),
            ("graft", "adam"),
            ("start_step", 0),
            ("root_every", 0),
            ("stats_every", 1.5),
            ("exponent", 0),
            ("weight_decay", -0.1),
        ),
    ),
    # torch's own, to keep the harness itself honest
    Factory("torch-adam", torch.optim.Adam, lr=0.1, invalid=()),
    Factory("torch-sgd", torch.optim.SGD, lr=0.1, invalid=()),
]
every_optimizer = pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.name)


def make(factory: Factory, params: Any, seed: int = 0, **options: Any) -> torch.optim.Optimizer:
    options = {"lr": factory.lr, **options}
    if factory.random:
        options["generator"] = seeded(seed)
    return factory.make(params, **options)


def take(optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor], steps: int) -> float:
    value = torch.tensor(float("nan"))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward(create_graph=getattr(optimizer, "wants_graph", False))
        return value

    for _ in range(steps):
        if getattr(optimizer, "needs_closure", False):
            value = optimizer.step(closure)
        else:
            value = closure()
            optimizer.step()
    return value.item()


def quadratic(dim: int = 6, seed: int = 0) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
    """A convex quadratic with coupled coordinates, its minimum 0 at 1."""
    a = torch.randn(dim, dim, generator=seeded(seed), dtype=torch.float64)
    h = a @ a.T / dim + torch.eye(dim, dtype=torch.float64)
    w = torch.zeros(dim, dtype=torch.float64, requires_grad=True)
    return w, lambda: 0.5 * (w - 1) @ h @ (w - 1)


class Shapes(nn.Module):
    """Parameters of ranks 0 to 4, all with curvature."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        g = seeded(seed)
        for name, shape in {
            "scale": (), "bias": (3,), "matrix": (3, 8), "line": (2, 2, 3), "kernel": (2, 1, 3, 3)
        }.items():  # fmt: skip
            value = torch.randn(shape, generator=g, dtype=torch.float64) * 0.4
            self.register_parameter(name, nn.Parameter(value))
        self.x = torch.randn(5, 1, 6, 4, generator=g, dtype=torch.float64)

    def forward(self) -> torch.Tensor:
        h = torch.tanh(nn.functional.conv2d(self.x, self.kernel)).flatten(2)  # [5, 2, 8]
        h = h + torch.tanh(nn.functional.conv1d(h, self.line, padding=1))
        out = self.scale * (h.mean(1) @ self.matrix.T) + self.bias
        return (out - 1).pow(2).mean()


def values(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


@every_optimizer
def test_descends_a_quadratic(factory):
    w, loss = quadratic()
    optimizer = make(factory, [w])
    start = loss().item()
    take(optimizer, loss, 150)
    assert loss().item() < 1e-2 * start


@every_optimizer
def test_every_rank_moves_and_descends(factory):
    net = Shapes()
    before, start = values(net), net().item()
    take(make(factory, net.parameters()), net, 30)
    assert net().item() < start
    for old, new in zip(before, values(net), strict=True):
        assert old.shape == new.shape
        assert torch.isfinite(new).all()
        assert not torch.equal(old, new)


@every_optimizer
def test_groups_keep_their_own_step_size(factory):
    net = Shapes()
    optimizer = make(factory, [{"params": [net.matrix], "lr": 0.0}, {"params": [net.bias, net.scale]}])
    before = values(net)
    take(optimizer, net, 2)
    moved = dict(zip(dict(net.named_parameters()), map(torch.equal, before, values(net)), strict=True))
    assert moved["matrix"]
    assert not moved["bias"]
    assert not moved["scale"]


@every_optimizer
def test_split_into_groups_changes_nothing(factory):
    ends = []
    for split in (False, True):
        net = Shapes()
        params = list(net.parameters())
        optimizer = make(factory, [{"params": params[:2]}, {"params": params[2:]}] if split else params)
        take(optimizer, net, 3)
        ends.append(values(net))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@every_optimizer
def test_a_group_can_be_added_later(factory):
    net = Shapes()
    params = list(net.parameters())
    optimizer = make(factory, params[:2])
    take(optimizer, net, 2)
    before = values(net)
    optimizer.add_param_group({"params": params[2:]})
    take(optimizer, net, 1)
    assert not any(torch.equal(a, b) for a, b in zip(before, values(net), strict=True))


@every_optimizer
def test_resumed_run_continues_bit_for_bit(factory, tmp_path):
    """Also the random stream: the second optimizer is seeded otherwise and must forget that."""
    net = Shapes()
    optimizer = make(factory, net.parameters(), seed=1)
    take(optimizer, net, 4)
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    take(optimizer, net, 4)

    twin = Shapes(seed=9)
    resumed = make(factory, twin.parameters(), seed=2)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    twin.load_state_dict(checkpoint["net"])
    twin.x = net.x
    resumed.load_state_dict(checkpoint["optimizer"])
    take(resumed, twin, 4)
    assert all(torch.equal(a, b) for a, b in zip(values(net), values(twin), strict=True))


@every_optimizer
def test_same_seed_same_run(factory):
    ends = []
    for _ in range(2):
        net = Shapes()
        take(make(factory, net.parameters(), seed=3), net, 4)
        ends.append(values(net))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@every_optimizer
def test_maximize_mirrors_minimize(factory):
    ends = []
    for sign in (1, -1):
        w, loss = quadratic()
        if sign < 0 and not factory.maximize:
            with pytest.raises((TypeError, ValueError), match="maximize"):
                make(factory, [w], maximize=True)
            return
        optimizer = make(factory, [w], **({"maximize": True} if sign < 0 else {}))
        take(optimizer, lambda sign=sign, loss=loss: sign * loss(), 5)
        ends.append(w.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


@every_optimizer
def test_zero_gradient_moves_nothing(factory):
    """At a stationary point of a curved loss nothing has a reason to move."""
    w = torch.ones(4, requires_grad=True)
    optimizer = make(factory, [w])
    take(optimizer, lambda: ((w - 1) ** 2).sum(), 3)
    assert torch.equal(w.detach(), torch.ones(4))


@every_optimizer
def test_missing_gradients_are_skipped(factory):
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    frozen = torch.ones(2)
    optimizer = make(factory, [used, unused, frozen])
    take(optimizer, lambda: (used**2).sum(), 3)
    assert torch.equal(unused.detach(), torch.ones(2))
    assert torch.equal(frozen, torch.ones(2))
    assert not torch.equal(used.detach(), torch.ones(2))


@every_optimizer
def test_a_step_without_any_gradient_is_harmless(factory):
    w = torch.ones(2, requires_grad=True)
    optimizer = make(factory, [w])
    optimizer.step((lambda: None) if getattr(optimizer, "needs_closure", False) else None)
    assert torch.equal(w.detach(), torch.ones(2))


@every_optimizer
def test_no_parameters_is_an_error(factory):
    with pytest.raises(ValueError, match="empty parameter list"):
        make(factory, [])


@pytest.mark.parametrize(
    ("factory", "option", "value"),
    [pytest.param(f, o, v, id=f"{f.name}-{o}-{v}") for f in FACTORIES for o, v in f.invalid],
)
def test_invalid_options_are_named(factory, option, value):
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=option):
        make(factory, [w], **{option: value})


@pytest.mark.parametrize(
    ("factory", "option", "value"),
    [
        pytest.param(f, *next((o, v) for o, v in f.invalid if o == "lr"), id=f.name)
        for f in FACTORIES
        if any(o == "lr" for o, _ in f.invalid)
    ],
)
def test_invalid_options_of_a_group_are_named(factory, option, value):
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=option):
        make(factory, [{"params": [w], option: value}])


@every_optimizer
def test_global_random_state_is_left_alone(factory):
    net = Shapes()
    before = torch.get_rng_state()
    take(make(factory, net.parameters()), net, 2)
    take(factory.make(net.parameters(), lr=factory.lr), net, 2)  # also without a generator of ours
    assert torch.equal(before, torch.get_rng_state())


@every_optimizer
def test_learning_rate_schedulers_drive_it(factory):
    net = Shapes()
    optimizer = make(factory, net.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], gamma=0.0)
    for _ in range(2):
        take(optimizer, net, 1)
        scheduler.step()
    before = values(net)
    take(optimizer, net, 1)
    assert optimizer.param_groups[0]["lr"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, values(net), strict=True))


@every_optimizer
def test_closure_is_evaluated_and_returned(factory):
    w, loss = quadratic()
    optimizer = make(factory, [w])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward(create_graph=getattr(optimizer, "wants_graph", False))
        return value

    expected, start = loss().item(), w.detach().clone()
    assert optimizer.step(closure).item() == expected
    assert not torch.equal(w.detach(), start)


@every_optimizer
def test_float32_stays_float32(factory):
    net = Shapes().float()
    net.x = net.x.float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Using backward")
        optimizer = make(factory, net.parameters())
        take(optimizer, net, 2)
    assert all(p.dtype == torch.float32 for p in net.parameters())
    for state in optimizer.state.values():
        assert all(s.dtype == torch.float32 for s in state.values() if isinstance(s, torch.Tensor))


def test_a_factor_that_does_not_exist_is_nan():
    good = torch.tensor([[4.0, 2.0], [2.0, 5.0]])
    found = cholesky(torch.stack([good, -good, good * math.nan]))
    assert torch.equal(found[0], torch.linalg.cholesky(good))
    assert found[1:].isnan().all()


# The benchmark, which takes any optimizer that passes the above.


def test_benchmark_gives_every_method_the_same_learning_rates():
    rates = benchmark.learning_rates(5)
    assert rates == benchmark.learning_rates(5) == sorted(rates)
    assert benchmark.LOWEST_LR <= rates[0] < rates[-1] <= benchmark.HIGHEST_LR


@pytest.mark.parametrize("method", ["torch.optim", "torch.optim:", ":SGD", "torch.optim:NoSuch", "no_such_module:SGD"])
def test_benchmark_names_a_method_it_cannot_import(method):
    with pytest.raises(SecondLookError, match=r"method|module|function in"):
        benchmark.methods_with(method)


def test_benchmark_takes_a_strangers_optimizer():
    assert benchmark.methods_with("torch.optim:RMSprop")["torch.optim:RMSprop"] is torch.optim.RMSprop
    with pytest.raises(SecondLookError, match="not callable"):
        benchmark.methods_with("math:pi")


@pytest.mark.parametrize("name", list(benchmark.METHODS))
def test_benchmark_trains_a_task(name):
    # OASIS multiplies the step that it finds; M-FAC's first is about n_grads times lr long, over the gradient's norm.
    lr = {"oasis": 1.0, "mfac": 0.003, "auon": 1.0, "muon": 0.1}.get(name, 0.03)
    task = "breast-cancer-logistic"
    budget = replace(tasks.TASKS[task], steps=20)
    run = partial(benchmark.train, benchmark.METHODS[name], task, lr=lr, seed=0, device="cpu", rows=2, budget=budget)
    trial = run()
    losses = trial.history.column("val_loss")
    assert trial.history.column("step") == [10, 20]
    assert losses[-1] < 0.6 * math.log(2)  # well below what guessing costs
    assert 0 < trial.seconds[0] < trial.seconds[1]
    torch.manual_seed(1)  # a run's draws come from its seed alone
    assert run().history.column("val_loss") == losses


@pytest.mark.parametrize("name", [n for n in tasks.TASKS if n in benchmark.SCALES["laptop"]["problems"]])
def test_every_task_trains(name):
    budget = replace(tasks.TASKS[name], steps=20)
    trial = benchmark.train(torch.optim.Adam, name, lr=3e-3, seed=0, device="cpu", rows=2, budget=budget)
    first, last = trial.history.column("val_loss")
    assert last < first
    assert not trial.history.diverged
    assert 0 < tasks.TASKS[name].target < tasks.TASKS[name].half.target


@pytest.mark.parametrize("name", ["pydoc-transformer", "pydoc-lstm", "heat-pinn", "digits-resnet"])
def test_tasks_can_be_differentiated_twice(name):
    budget = replace(tasks.TASKS[name], steps=3)
    make = benchmark.METHODS["adahessian"]
    trial = benchmark.train(make, name, lr=0.05, seed=0, device="cpu", rows=1, budget=budget)
    assert math.isfinite(trial.final)


@pytest.mark.parametrize("name", list(benchmark.METHODS))
def test_no_step_waits_for_the_gpu(name):
    """The host hands the GPU step after step; what it looks up is as much after few steps as after many.

    Steps at which FOSI looks for eigenpairs (25) and Shampoo for roots (20) do wait: they stop when they are done.
    """
    waits = []
    with stand_in_gpu() as gpu:
        task = tasks.load("digits-resnet", "cuda")
        model, batches, optimizer = started(benchmark.METHODS[name], task, 1e-3, 0, "cuda")
        needs = {"graph": hasattr(optimizer, "wants_graph"), "closure": getattr(optimizer, "needs_closure", False)}
        for steps in (4, 4, 10):
            gpu.waits.clear()
            fit(model, optimizer, batches, task.loss, steps=steps, **needs)
            waits.append(gpu.waits.copy())
    assert waits[1] == waits[2]
    assert sum(waits[1].values()) <= 4


def test_own_time_leaves_the_closure_out(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: clock.now)

    class Steps(torch.optim.SGD):
        """Half a second of its own, and a closure that takes a minute."""

        needs_closure = True

        def zero_grad(self, set_to_none=True):
            clock.now += 60
            super().zero_grad(set_to_none)

        def step(self, closure):
            clock.now += 0.5
            return super().step(closure)

    assert list(itertools.islice(overhead.timed_steps(Steps, 4, "cpu"), 3)) == [0.5] * 3
    assert overhead.own_times({"mine": Steps, "adamw": Steps}, 4, "cpu", repeats=2) == {"mine": 1, "adamw": 1}


def test_profiles_count_tasks_within_a_factor_of_the_best():
    def trial(steps: float) -> benchmark.Trial:
        history = History([{"step": steps, "val_loss": 0.0}] if steps else [])
        return benchmark.Trial(1.0, history, [steps])

    kept = {}
    run = SimpleNamespace(record=lambda metric, value, **at: kept.update({(metric, at["method"], at["step"]): value}))
    needed = {
        ("p", "fast"): 10,
        ("p", "slow"): 25,
        ("q", "fast"): 30,
        ("q", "slow"): 20,
        ("r", "fast"): 0,
        ("r", "slow"): 0,
    }
    benchmark.profiles(run, {k: [trial(v)] for k, v in needed.items()}, ["fast", "slow"], ["p", "q", "r"], seeds=1)
    assert kept["profile_steps", "fast", 1.0] == pytest.approx(100 / 3)
    assert kept["profile_steps", "fast", 1.5] == pytest.approx(200 / 3)  # at the edge counts
    assert kept["profile_steps", "slow", 2.0] == pytest.approx(100 / 3)
    assert kept["profile_time", "slow", 3.0] == pytest.approx(200 / 3)  # nobody solves r
