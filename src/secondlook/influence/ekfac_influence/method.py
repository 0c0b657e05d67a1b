r"""Influence functions with an EK-FAC inverse curvature (Grosse et al., arXiv:2308.03296).

The influence of a training example z_m on a measurement f, at the trained weights theta,

    I_f(z_m) = - grad f(theta)^T (G + lambda I)^{-1} grad L(z_m, theta)

is the first-order change of f for a unit of extra weight on z_m. G, the Gauss-Newton Hessian, is replaced by one
Kronecker block a layer, so that the inverse costs two small matrix products:

    (G_l + lambda_l I)^{-1} V = Q_S [(Q_S^T V Q_A) / (Lambda + lambda_l)] Q_A^T,   lambda_l = 0.1 mean(Lambda)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from secondlook.curvature.kronecker import (
    STRATEGIES,
    Block,
    LowRank,
    Pairs,
    Strategy,
    fit_blocks,
    layer_pairs,
    linear_layers,
)
from secondlook.influence.ekfac_influence.losses import OutputLoss, output_loss

RELATIVE_DAMPING = 0.1
Batch = tuple[Tensor, Tensor]
Matrices = dict[str, Tensor]  # one [..., out, in] a layer, biases as the last column
Measurement = Callable[[Tensor, Tensor], Tensor]  # (outputs, y) -> f, [N]


class EKFACInfluence:
    """Pairwise influence scores of a trained network.

    model: must be in eval mode if its training mode mixes examples.  loss: "ce" (class indices), "mse" (half the
    squared distance) or an `OutputLoss`; summed over the tokens of an example.  layers: names of Linear and Conv2d
    layers, None for all.  damping: lambda for all layers, a number for each layer, or None for 0.1 mean(Lambda) of
    each layer.  strategy: "ekfac", or one of the baselines "kfac", "diagonal", "identity" (plain dot products).
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | OutputLoss = "ce",
        *,
        layers: Iterable[str] | None = None,
        damping: float | Mapping[str, float] | None = None,
        strategy: Strategy = "ekfac",
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"unknown strategy {strategy!r}; choose one of {STRATEGIES}")
        if isinstance(damping, float | int) and damping < 0:
            raise ValueError(f"damping must not be negative, got {damping}")
        self.model = model
        self.loss = output_loss(loss)
        self.strategy = strategy
        self.layers = linear_layers(model, layers)
        self.blocks: dict[str, Block] | None = None
        self._damping = damping

    def fit(
        self,
        batches: Iterable[Batch],
        *,
        generator: torch.Generator | None = None,
        targets: str = "sampled",
    ) -> EKFACInfluence:
        """Fit the factors on re-iterable batches (x, y).

        targets: "sampled" draws labels from the network's output distribution (the Gauss-Newton matrix), "given"
        takes y itself: the training labels give the empirical Fisher, labels drawn beforehand the same as "sampled".
        """
        if targets not in ("sampled", "given"):
            raise ValueError(f"targets must be 'sampled' or 'given', got {targets!r}")

        def pseudo_loss(model: nn.Module, batch: Batch) -> Tensor:
            x, y = batch
            outputs = model(x)
            drawn = y if targets == "given" else self.loss.sample(outputs.detach(), y, generator)
            return self.loss.loss(outputs, drawn).sum()

        names = tuple(self.layers)
        self.blocks = fit_blocks(self.model, batches, pseudo_loss, strategy=self.strategy, layers=names)
        return self

    @property
    def damping(self) -> dict[str, float]:
        """lambda of each layer."""
        blocks = self._fitted()
        if self.strategy == "identity":
            return dict.fromkeys(blocks, 0.0)
        if self._damping is None:
            return {name: RELATIVE_DAMPING * float(b.eigenvalues.mean()) for name, b in blocks.items()}
        if isinstance(self._damping, Mapping):
            missing = sorted(set(blocks) - set(self._damping))
            if missing:
                raise ValueError(f"no damping for layers {missing}; give one number for each layer")
            return {name: float(self._damping[name]) for name in blocks}
        return dict.fromkeys(blocks, float(self._damping))

    def precondition(self, grads: Mapping[str, Tensor]) -> Matrices:
        """(G + lambda I)^{-1} times gradients, one [..., out, in] a layer."""
        blocks, damping = self._fitted(), self.damping
        return {name: blocks[name].solve(grads[name], damping[name]) for name in blocks}

    def pairs(self, batch: Batch, measurement: Measurement | None = None) -> dict[str, Pairs]:
        """Per-example gradients in factored form: of the loss, or of another measurement."""
        value = measurement or self.loss.loss
        x, y = batch
        return layer_pairs(self.model, self.layers, lambda model, _: value(model(x), y).sum(), batch)

    def gradients(self, batches: Iterable[Batch], measurement: Measurement | None = None) -> Matrices:
        """Per-example gradients [N, out, in] for each layer; meant for a few queries."""
        pieces = [self.pairs(batch, measurement) for batch in batches]
        if not pieces:
            raise ValueError("no batches; pass at least one (x, y)")
        return {name: torch.cat([p[name].gradients() for p in pieces]) for name in self.layers}

    def scores(
        self,
        queries: Iterable[Batch],
        train: Iterable[Batch],
        *,
        rank: int | None = None,
        measurement: Measurement | None = None,
    ) -> Tensor:
        """I_f(z_m) for every query and training example, [Q, N].

        One pass over the training gradients serves all queries. rank: keep only the leading singular directions
        of the preconditioned query gradients (Section 3.2.2), [out, r] and [r, in] a layer.
        """
        directions = self.precondition(self.gradients(queries, measurement))
        return self.scores_along(directions, train, rank=rank)

    def scores_along(
        self, directions: Mapping[str, Tensor], train: Iterable[Batch], *, rank: int | None = None
    ) -> Tensor:
        """Scores [Q, N] from preconditioned query gradients of whatever solver."""
        kept = dict(directions) if rank is None else {n: LowRank.compress(v, rank) for n, v in directions.items()}
        columns = []
        for batch in train:
            pairs = self.pairs(batch)
            columns.append(-torch.stack([p.dot(kept[name]) for name, p in pairs.items()]).sum(0))
        if not columns:
            raise ValueError("no training batches; pass at least one (x, y)")
        return torch.cat(columns, dim=1)

    def _fitted(self) -> dict[str, Block]:
        if self.blocks is None:
            raise RuntimeError("no factors yet; call fit(batches) first")
        return self.blocks
