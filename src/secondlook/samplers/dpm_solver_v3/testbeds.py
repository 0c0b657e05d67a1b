"""What the samplers run on: an exact-score mixture (discretisation error alone) and a trained denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from secondlook.problems import datasets, zoo
from secondlook.problems.mixtures import digits_mixture
from secondlook.problems.zoo import denoiser as denoisers
from secondlook.samplers.dpm_solver_v3.baselines import DDIM, DPMSolverPP, RungeKutta, UniPC
from secondlook.samplers.dpm_solver_v3.method import EMS, DPMSolverV3
from secondlook.samplers.dpm_solver_v3.multistep import EpsFn, MultistepSampler
from secondlook.samplers.dpm_solver_v3.schedule import Schedule, VPSchedule
from secondlook.suite.runner import Run

Build = Callable[[EpsFn, Schedule], MultistepSampler]

BASELINES: dict[str, Build] = {
    "ddim": DDIM,
    "dpm-solver++": partial(DPMSolverPP, order=2),
    "dpm-solver++-2m-taylor": partial(DPMSolverPP, order=2, variant="taylor"),
    "dpm-solver++-3m": partial(DPMSolverPP, order=3),
    "unipc-2": partial(UniPC, order=2),
    "unipc-3": partial(UniPC, order=3),
    "unipc-2-v": partial(UniPC, order=2, variant="v"),
    "unipc-3-v": partial(UniPC, order=3, variant="v"),
}
"""The earlier training-free solvers, eight recipes."""


def v3_recipes(ems: EMS) -> dict[str, Build]:
    """DPM-Solver-v3 in eight recipes: orders 2 and 3 without corrector ("v3-2"), with the true-order one ("-c") and the
    pseudo-order one ("-cp"), and at order 3 both correctors after a pseudo-order predictor ("-p-c", "-p-cp")."""
    correctors = {"": {"corrector": False}, "-c": {"c_pseudo": False}, "-cp": {"c_pseudo": True}}
    recipes = {
        f"v3-{order}{suffix}": partial(DPMSolverV3, ems=ems, order=order, **keywords)
        for order in (2, 3)
        for suffix, keywords in correctors.items()
    }
    return recipes | {f"v3-3-p{s}": partial(recipes[f"v3-3{s}"], p_pseudo=True) for s in ("-c", "-cp")}


@dataclass(frozen=True)
class TestBed:
    """A noise prediction to sample from, and the images [N, *shape] in [-1, 1] it was made of."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    eps_fn: EpsFn
    schedule: Schedule
    data: Tensor

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Starting points x_T [n, *shape]; the draws do not depend on the device or the precision."""
        draws = torch.randn(n, *self.data.shape[1:], generator=generator, dtype=torch.float64)
        return draws.to(self.data)

    @torch.no_grad()
    def solve(self, sampler: MultistepSampler | RungeKutta, x_T: Tensor, steps: int, batch_size: int = 512) -> Tensor:
        """Samples from x_T, a batch at a time."""
        return torch.cat([sampler.sample(part, steps) for part in x_T.split(batch_size)])

    def reference(self, x_T: Tensor, steps: int) -> Tensor:
        """The converged solution from x_T, by `steps` Runge-Kutta steps of four evaluations."""
        return self.solve(RungeKutta(self.eps_fn, self.schedule), x_T, steps)


def mixture(run: Run) -> TestBed:
    """Twenty full-covariance Gaussians fitted to the digits, in float64: the score is exact."""
    model, schedule = digits_mixture(), VPSchedule()
    data = datasets.load("digits").train.x.flatten(1).double() * 2 - 1

    def eps_fn(x: Tensor, lam: Tensor) -> Tensor:
        return model.eps(x, schedule.alpha(lam), schedule.sigma(lam))

    return TestBed(eps_fn, schedule, data)


def denoiser(run: Run) -> TestBed:
    """The reference model `denoiser`, in its own precision: model error is part of the ODE and of its solution."""
    model = zoo.load("denoiser", seed=0, scale=run.scale, root=run.results, device=run.device)
    model.requires_grad_(False)
    data = datasets.load(denoisers.SCALES[run.scale]["data"]).train.x * 2 - 1
    return TestBed(model, VPSchedule(), data.to(run.device))


TESTBEDS: dict[str, Callable[[Run], TestBed]] = {"mixture": mixture, "denoiser": denoiser}
