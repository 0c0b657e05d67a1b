"""Quenches of the transverse-field Ising chain: Levenberg-Marquardt, Adam, and integration step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import vmap

from secondlook.curvature.flat import pack, unpack
from secondlook.optimizers.least_squares import levenberg_marquardt
from secondlook.optimizers.spacetime_nn.method import Grid, SpacetimeAR, midpoint_residual, tfim
from secondlook.optimizers.spacetime_nn.variational import cayley, exact, infidelity, magnetisation_x, tdvp
from secondlook.problems.pairing import streams
from secondlook.problems.training import cosine
from secondlook.problems.tuning import TUNING_SEED
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

LAM0 = 1.0


@dataclass(frozen=True)
class Quench:
    """All spins along x, and from t = 0 on the Ising chain with J = g = 1; everything in float64."""

    n: int
    H: Tensor
    times: Tensor
    psi0: Tensor
    w0: float

    @classmethod
    def of(cls, n: int, final: float, steps: int, w0: float, device: str) -> Quench:
        times = torch.linspace(0, final, steps + 1, dtype=torch.float64, device=device)
        psi0 = torch.full((2**n,), 2 ** (-n / 2), dtype=torch.complex128, device=device)
        return cls(n, tfim(n, device=device).to_dense(), times, psi0, w0)

    def network(self, arm: str, seed: int, hidden: int, depth: int) -> SpacetimeAR:
        weights, _ = streams(arm, seed)
        phase = not arm.startswith("lm-real")
        return SpacetimeAR(self.n, hidden, depth, phase, energy=self.n, generator=weights).to(self.times.device)

    def states(self, net: SpacetimeAR, params: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return Grid(net, self.n, self.times).psi(params)


Curve = list[tuple[int, float]]


def second_order(quench: Quench, net: SpacetimeAR, iterations: int, price: int) -> tuple[Tensor, Curve]:
    """States by Levenberg-Marquardt, and the loss by work: each iteration counts `price` gradients."""
    residual, jacobian = midpoint_residual(net, quench.H, quench.times, quench.psi0, quench.w0)
    trace = levenberg_marquardt(residual, dict(net.named_parameters()), LAM0, iterations, jacobian=jacobian)
    return quench.states(net, trace.params), [(price * i, 2 * loss) for i, loss in enumerate(trace.losses)]


def first_order(
    quench: Quench, nets: list[SpacetimeAR], gradients: int, every: int, lrs: list[float]
) -> tuple[list[Tensor], list[Curve]]:
    """States and losses of several networks by Adam, each with its own rate, falling along half a cosine.

    They are evaluated together, each as one vector of weights, which is faster and changes nothing for any of them.
    """
    names, like = zip(*nets[0].named_parameters(), strict=True)
    weights = [pack(net.parameters()).detach().requires_grad_() for net in nets]
    residual, _ = midpoint_residual(nets[0], quench.H, quench.times, quench.psi0, quench.w0)
    optimizer = torch.optim.Adam([{"params": [w]} for w in weights], fused=True)
    rate = cosine(gradients)
    seen = []

    def named(w: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, unpack(w, like), strict=True))

    def losses() -> Tensor:
        return (vmap(lambda w: residual(named(w)))(torch.stack(weights)) ** 2).sum(1)

    for done in range(gradients):
        value = losses()
        if done % every == 0:
            seen.append((done, value.tolist()))
        for w, gradient in zip(weights, torch.autograd.grad(value.sum(), weights), strict=True):
            w.grad = gradient
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr * rate(done)
        optimizer.step()
    with torch.no_grad():
        seen.append((gradients, losses().tolist()))
    curves = [[(done, value[i]) for done, value in seen] for i in range(len(nets))]
    return [quench.states(nets[0], named(w)) for w in weights], curves


def initial_weights(quench: Quench, net: SpacetimeAR) -> Tensor:
    """Weights [P] at which the network, its time held at 0, is in the initial state."""
    grid = Grid(net, quench.n, quench.times[:1] * 0)

    def residual(params: dict[str, Tensor]) -> Tensor:
        return torch.view_as_real(grid.psi(params)[0] - quench.psi0)

    return pack(levenberg_marquardt(residual, dict(net.named_parameters()), 1e-2, 30).params.values())


def stepwise(quench: Quench, net: SpacetimeAR, weights: Tensor, rconds: list[float], substeps: int) -> Tensor:
    """States [R, K+1, 2^n] by the variational principle from R fitted weights [R, P], each with its own cut-off."""
    return tdvp(net, quench.H, quench.times, weights.new_tensor(rconds), substeps, weights)


def dynamics(
    run: Run,
    *,
    quenches: dict[str, dict[str, float]],
    hidden: int,
    depth: int,
    iterations: int,
    price: int,
    real_iterations: int,
    lrs: list[float],
    rconds: list[float],
    substeps: int,
    repeats: int,
) -> None:
    """Infidelity over time, and loss by work, of the space-time network and of the variational principle."""
    for problem, options in quenches.items():
        quench = Quench.of(**options, device=run.device)
        truth, own = (evolve(quench.H, quench.psi0, quench.times) for evolve in (exact, cayley))
        network = partial(quench.network, hidden=hidden, depth=depth)
        descend = partial(first_order, quench, gradients=price * iterations, every=price)
        record = partial(_record, run, problem, quench, truth, own)

        for seed in run.track(run.seeds, f"Levenberg-Marquardt on {problem}"):
            record("lm", seed, *second_order(quench, network("lm", seed), iterations, price))
            record("lm-real", seed, *second_order(quench, network("lm-real", seed), real_iterations, price))

        _, trials = descend([network("tuning", TUNING_SEED) for _ in lrs], lrs=lrs)
        ends = {lr: curve[-1][1] for lr, curve in zip(lrs, trials, strict=True)}
        lr = min(ends, key=lambda lr, ends=ends: (not math.isfinite(ends[lr]), ends[lr]))
        runs = [(arm, seed) for arm in ("adam", "adam-copy") for seed in run.seeds]
        for (arm, seed), psi, curve in zip(
            runs, *descend([network(*r) for r in runs], lrs=[lr] * len(runs)), strict=True
        ):
            record(arm, seed, psi, curve)

        net = network("tuning", TUNING_SEED)
        start = initial_weights(quench, net)
        ends = stepwise(quench, net, start.expand(len(rconds), -1), rconds, substeps)[:, -1]
        rcond = rconds[int(infidelity(ends, truth[-1]).nan_to_num(nan=1.0).argmin())]
        runs = [(arm, seed) for arm in ("tdvp", "tdvp-copy") for seed in run.seeds]
        starts = torch.stack(
            [initial_weights(quench, network(*r)) for r in run.track(runs, f"initial states on {problem}")]
        )
        for (arm, seed), psi in zip(runs, stepwise(quench, net, starts, [rcond] * len(runs), substeps), strict=True):
            record(arm, seed, psi, [])

        keep = partial(run.record, problem=problem)
        for t, value in zip(quench.times.tolist(), magnetisation_x(truth).tolist(), strict=True):
            keep("magnetisation", value, method="exact", step=t)
        keep("tuned", lr, method="adam")
        keep("tuned", rcond, method="tdvp")
        keep("price", measured_price(quench, network("tuning", TUNING_SEED), repeats), method="lm")


def measured_price(quench: Quench, net: SpacetimeAR, repeats: int) -> float:
    """Seconds of an iteration of Levenberg-Marquardt over those of a step of Adam; medians of alternating runs."""
    calls = {
        "none": lambda: second_order(quench, net, 0, 1),
        "four": lambda: second_order(quench, net, 4, 1),
        "ten": lambda: first_order(quench, [net], 10, 10, [1e-3]),
        "thirty": lambda: first_order(quench, [net], 30, 30, [1e-3]),
    }
    median = interleaved(calls, repeats).groupby("name")["seconds"].median()
    return (median["four"] - median["none"]) / 4 / ((median["thirty"] - median["ten"]) / 20)


def _record(
    run: Run,
    problem: str,
    quench: Quench,
    truth: Tensor,
    own: Tensor,
    arm: str,
    seed: int,
    psi: Tensor,
    curve: Curve,
) -> None:
    """All that compares the states [K+1, 2^n] of an arm with the exact ones and with those of the mid-point rule."""
    keep = partial(run.record, method=arm, problem=problem, seed=seed)
    series = partial(run.record_series, method=arm, problem=problem, seed=seed)
    missed, mean = infidelity(psi, truth), magnetisation_x(psi)
    series("infidelity", missed, steps=quench.times.tolist())
    series("magnetisation", mean, steps=quench.times.tolist())
    keep("max_infidelity", missed.max())
    keep("final_infidelity", missed[-1])
    keep("midpoint_infidelity", infidelity(psi, own).max())
    keep("magnetisation_error", (mean - magnetisation_x(truth)).abs().max())
    series("loss", [loss for _, loss in curve], steps=[done for done, _ in curve])
    if curve:
        keep("final_loss", curve[-1][1])
