"""The same updates by other packages: seconds a step on many small tensors, and how far the parameters part.

The loss is a sum of squares with positive weights, so Hutchinson's estimate of the Hessian's diagonal is exact whatever
is drawn, and two implementations of one rule must agree to rounding.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from secondlook.optimizers.adahessian import AdaHessian
from secondlook.optimizers.adamp import SGDP, AdamP
from secondlook.optimizers.auon import Muon
from secondlook.optimizers.vit_sam import SAM
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

SHAPES = [(16, 16, 3, 3), (32, 32), (32,)]
MATRICES = [(32, 32), (64, 16)]
STEPS = 5  # before the parameters are compared

Make = Callable[[list[Tensor]], Optimizer]


@dataclass(frozen=True)
class Rule:
    """Our implementation, and others by package; all with the same options."""

    ours: Make
    peers: dict[str, Callable[[Any, list[Tensor]], Optimizer]]  # called with the package
    shapes: tuple[tuple[int, ...], ...] = tuple(SHAPES)
    graph: bool = False  # differentiates the gradients
    twice: bool = False  # needs gradients at a second point


def _groups(params: list[Tensor]) -> list[dict[str, Any]]:
    return [{"params": params, "use_muon": True}]


DECAY = {"lr": 1e-3, "weight_decay": 1e-2}
HEAVY = DECAY | {"momentum": 0.9}
CURVED = {"lr": 0.1, "eps": 1e-4}
RULES = {
    "adamp": Rule(
        partial(AdamP, **DECAY),
        {
            "torch_optimizer": lambda package, params: package.AdamP(params, **DECAY),
            "pytorch_optimizer": lambda package, params: package.AdamP(params, **DECAY),
        },
    ),
    "sgdp": Rule(
        partial(SGDP, **HEAVY),
        {
            "torch_optimizer": lambda package, params: package.SGDP(params, **HEAVY),
            "pytorch_optimizer": lambda package, params: package.SGDP(params, **HEAVY),
        },
    ),
    "adahessian": Rule(
        partial(AdaHessian, spatial_average=False, **CURVED),
        {"pytorch_optimizer": lambda package, params: package.AdaHessian(params, **CURVED)},
        graph=True,
    ),
    "sam": Rule(
        partial(SAM, base_optimizer=torch.optim.SGD, rho=0.05, lr=0.1),
        {"pytorch_optimizer": lambda package, params: package.SAM(params, torch.optim.SGD, rho=0.05, lr=0.1)},
        twice=True,
    ),
    "muon": Rule(
        partial(Muon, lr=0.02, adjust_lr_fn="original"),
        {
            "pytorch_optimizer": lambda package, params: package.Muon(_groups(params), lr=0.02),
            "torch.optim": lambda package, params: package.Muon(params, lr=0.02, weight_decay=0, momentum=0.95),
        },
        shapes=tuple(MATRICES),
    ),
}


@dataclass(frozen=True)
class Bench:
    """Many small tensors under one optimizer."""

    params: list[Tensor]
    weights: list[Tensor]
    optimizer: Optimizer
    rule: Rule

    @staticmethod
    def of(make: Make, rule: Rule, tensors: int, device: str) -> Bench:
        g = torch.Generator().manual_seed(0)
        shapes = list(itertools.islice(itertools.cycle(rule.shapes), tensors))
        params = [torch.randn(s, generator=g).to(device).requires_grad_() for s in shapes]
        weights = [(1 + torch.rand(s, generator=g)).to(device) for s in shapes]
        return Bench(params, weights, make(params), rule)

    def closure(self) -> Tensor:
        """Gradients of sum_i weights_i params_i^2 / 2, with their graph where the rule wants it."""
        with torch.set_grad_enabled(self.rule.graph):
            for p, grad in zip(self.params, torch._foreach_mul(self.weights, self.params), strict=True):
                p.grad = grad
        return self.params[0].new_zeros(())  # no rule here looks at the loss

    def step(self) -> None:
        """Gradients and a step."""
        if getattr(self.optimizer, "needs_closure", False):
            self.optimizer.step(self.closure)
            return
        self.closure()
        self.optimizer.step(*([self.closure] if self.rule.twice else []))


def beside_peers(run: Run, *, tensors: int, repeats: int) -> None:
    """Our time over a peer's for each rule that both have, and the largest relative difference after a few steps."""
    for name, rule in RULES.items():
        for package, make in rule.peers.items():
            try:
                found = importlib.import_module(package)
            except ImportError:
                run.note(f"peer {package} is not installed: pip install 'secondlook[peers]'")
                continue
            benches = {
                "ours": Bench.of(rule.ours, rule, tensors, run.device),
                "peer": Bench.of(partial(make, found), rule, tensors, run.device),
            }
            for _ in range(STEPS):
                for bench in benches.values():
                    bench.step()
            pairs = zip(benches["ours"].params, benches["peer"].params, strict=True)
            gap = max(float((a - b).detach().abs().max() / b.detach().abs().max()) for a, b in pairs)
            run.record("peer_difference", gap, method=name, problem=package)
            table = interleaved({key: bench.step for key, bench in benches.items()}, repeats=repeats)
            times = table.pivot(index="repeat", columns="name", values="seconds")
            for repeat, ratio in enumerate(times["ours"] / times["peer"]):
                run.record("peer_time", ratio, method=name, problem=package, seed=repeat)
