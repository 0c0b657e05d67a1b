"""What the experiments compare: every strategy fitted alike, the exact solves, and influence broken on purpose."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from secondlook.curvature.kronecker import LowRank
from secondlook.influence.ekfac_influence.exact import Solver, cg_solver, dense_solver
from secondlook.influence.ekfac_influence.method import EKFACInfluence
from secondlook.influence.ekfac_influence.setting import Trained, generator

STRATEGIES = {"ekfac": "ekfac", "kfac": "kfac", "diagonal": "diagonal", "dot": "identity"}


def fit_all(network: nn.Module, trained: Trained, seed: int, device: str) -> dict[str, EKFACInfluence]:
    """All strategies on the same drawn labels and, where they are damped, with EK-FAC's damping of each layer."""
    batches, loss = trained.batches(), trained.task.output_loss
    g = generator(seed, 0, device)
    with torch.no_grad():
        drawn = [(x, loss.sample(network(x), y, g)) for x, y in batches]
    fits = {"ekfac": EKFACInfluence(network, loss).fit(drawn, targets="given")}
    damping = fits["ekfac"].damping
    for name, strategy in STRATEGIES.items():
        if name != "ekfac":
            influence = EKFACInfluence(network, loss, strategy=strategy, damping=damping)
            fits[name] = influence.fit(drawn, targets="given")
    return fits


def exact(kind: str, network: nn.Module, inputs: Sequence[Tensor], loss: str, damping: Mapping[str, float]) -> Solver:
    """The reference solver: "dense" factorises once, "cg" iterates for every query."""
    if kind not in ("dense", "cg"):
        raise ValueError(f"solver must be 'dense' or 'cg', got {kind!r}")
    if kind == "dense":
        return dense_solver(network, inputs, loss, damping, dtype=torch.float32)
    # In float32 the recurrence drifts: it reports 1e-4 where the true residual stays several times larger.
    network, inputs = copy.deepcopy(network).double(), [x.double() for x in inputs]
    return cg_solver(network, inputs, loss, damping, tolerance=1e-4, max_steps=3000)


def with_random_basis(influence: EKFACInfluence, g: torch.Generator) -> EKFACInfluence:
    """The same eigenvalues in eigenbases that have nothing to do with the data."""

    def basis(like: Tensor) -> Tensor:
        return torch.linalg.qr(torch.randn(like.shape, generator=g)).Q.to(like)

    return _with_blocks(
        influence,
        {n: replace(b, basis_out=basis(b.basis_out), basis_in=basis(b.basis_in)) for n, b in influence.blocks.items()},
    )


def borrowed(influence: EKFACInfluence, other: EKFACInfluence) -> EKFACInfluence:
    """This network's gradients with the factors that were fitted on another network."""
    return _with_blocks(influence, other.blocks)


def _with_blocks(influence: EKFACInfluence, blocks: Mapping[str, object]) -> EKFACInfluence:
    result = EKFACInfluence(influence.model, influence.loss, damping=influence.damping)
    result.blocks = dict(blocks)
    return result


def random_subspace(directions: Mapping[str, Tensor], rank: int, g: torch.Generator) -> dict[str, LowRank]:
    """Query gradients projected on random directions instead of their leading singular ones."""
    result = {}
    for name, p in directions.items():
        rows = torch.randn(len(p), p.shape[1], min(rank, p.shape[1]), generator=g).to(p)
        u = torch.linalg.qr(rows).Q
        result[name] = LowRank(u, u.mT @ p)
    return result
