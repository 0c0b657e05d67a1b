"""Training a sequential network from values of its loss: coordinates layer by layer, masks, steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secondlook.optimizers.deepzero.method import Loss, cge, layer_masks, rge

__all__ = ["ZOTrainer", "cge_by_layer", "frozen_statistics"]

Criterion = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]


def cross_entropy(scores: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy of scores [N, C] to classes [N]; PyTorch's own is slow on a CPU where C is small."""
    return (scores.logsumexp(-1) - scores.gather(-1, classes[:, None])[:, 0]).mean()


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch normalisation uses the statistics of its batch and leaves its running averages alone."""
    tracking = [m for m in model.modules() if getattr(m, "track_running_stats", False)]
    for m in tracking:
        m.track_running_stats = False
    try:
        yield
    finally:
        for m in tracking:
            m.track_running_stats = True


def whole_loss(model: nn.Module, criterion: Criterion, batch: Batch) -> Loss:
    """The loss as a function of the list of all parameters of `model`."""
    names = [name for name, _ in model.named_parameters()]
    x, y = batch
    return lambda values: criterion(functional_call(model, dict(zip(names, values, strict=True)), (x,)), y)


@torch.no_grad()
def cge_by_layer(
    model: nn.Sequential,
    criterion: Criterion,
    batch: Batch,
    mu: float = 5e-3,
    mask: Sequence[Tensor] | None = None,
    chunk: int = 256,
) -> tuple[Tensor, list[Tensor]]:
    """The loss and its coordinate-wise estimate with feature reuse, in the order of `model.parameters()`.

    What enters a layer does not depend on the layer's own weights. It is computed once, and each query runs from there
    to the end only.
    """
    x, y = batch
    entering = [x]
    for layer in model:
        entering.append(layer(entering[-1]))
    base = criterion(entering[-1], y)
    out: list[Tensor] = []
    for i, layer in enumerate(model):
        params = list(layer.parameters())
        if params:
            own = None if mask is None else mask[len(out) : len(out) + len(params)]
            rest = nn.Sequential(*model[i:])
            names = [f"0.{name}" for name, _ in layer.named_parameters()]

            def loss(
                values: list[Tensor], rest: nn.Module = rest, names: list[str] = names, h: Tensor = entering[i]
            ) -> Tensor:
                return criterion(functional_call(rest, dict(zip(names, values, strict=True)), (h,)), y)

            out += cge(loss, params, mu, own, chunk, base)
    return base, out


class ZOTrainer:
    """SGD on a sequential network, with gradients from values of the loss.

    Args:
        model: layers in a row, in training mode. Its running averages follow the unperturbed batches alone.
        criterion: `criterion(outputs, targets)`, the mean loss; by default the cross-entropy of scores to classes.
        estimator: "cge" or "rge".
        sparsity: shares of each parameter tensor that are queried at a time (`zo_grasp`), in the order of
            `model.parameters()`; None queries all. Coordinates that are not queried have gradient 0.
        shuffle_every: steps after which other coordinates are drawn.
        queries: directions of "rge"; None takes as many as there are parameters.
        generator: draws the directions and the masks.

    Batch normalisation uses batch statistics at every query. `queried` counts forward passes of the whole batch.
    """

    def __init__(
        self,
        model: nn.Sequential,
        estimator: str = "cge",
        sparsity: Sequence[float] | None = None,
        shuffle_every: int = 1000,
        lr: float = 0.1,
        *,
        criterion: Criterion = cross_entropy,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        mu: float = 5e-3,
        queries: int | None = None,
        chunk: int = 256,
        generator: torch.Generator | None = None,
    ) -> None:
        if estimator not in ("cge", "rge"):
            raise ValueError(f"estimator must be 'cge' or 'rge', got {estimator!r}")
        if shuffle_every < 1:
            raise ValueError(f"shuffle_every must be at least 1, got {shuffle_every!r}")
        if sparsity is not None and estimator == "rge":
            raise ValueError("sparsity chooses coordinates, which 'rge' does not query one by one; leave it out")
        if generator is None and (estimator == "rge" or sparsity is not None):
            raise ValueError("directions and masks are drawn at random: hand in a generator")
        self.model, self.estimator, self.sparsity, self.shuffle_every = model, estimator, sparsity, shuffle_every
        self.criterion, self.mu, self.queries, self.chunk = criterion, mu, queries, chunk
        self.params = list(model.parameters())
        self.optimizer = torch.optim.SGD(self.params, lr, momentum=momentum, weight_decay=weight_decay)
        self.generator = generator
        self.mask: list[Tensor] | None = None
        self.steps = self.queried = 0

    @torch.no_grad()
    def gradient(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The loss on `batch` and its estimated gradient. Counts as a step for the masks."""
        if self.sparsity is not None and self.steps % self.shuffle_every == 0:
            self.mask = layer_masks(self.params, self.sparsity, self.generator)
        self.steps += 1
        coordinates = sum(p.numel() for p in self.params) if self.mask is None else sum(int(m.sum()) for m in self.mask)
        with frozen_statistics(self.model):
            if self.estimator == "cge":
                value, grads = cge_by_layer(self.model, self.criterion, batch, self.mu, self.mask, self.chunk)
                self.queried += coordinates + 1
            else:
                q, loss = self.queries or coordinates, whole_loss(self.model, self.criterion, batch)
                value = loss(self.params)
                grads = rge(loss, self.params, self.mu, q, self.generator, chunk=self.chunk, base=value)
                self.queried += q + 1
        self.model(batch[0])  # for the running averages alone
        return value, grads

    def step(self, batch: Batch) -> Tensor:
        """One step of SGD; returns the loss before it."""
        value, grads = self.gradient(batch)
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g
        self.optimizer.step()
        return value


DeepZero = ZOTrainer
