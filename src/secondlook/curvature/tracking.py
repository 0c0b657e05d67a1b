r"""Sharpness along training: the ends of the spectrum, measured again and again as the parameters move.

Gradient descent with learning rate $\eta$ is stable along an eigenvector of the Hessian while its eigenvalue is below
$2 / \eta$ (Cohen et al. 2021). With a diagonal preconditioner D, as in Adam, what counts is $D^{-1/2} H D^{-1/2}$
(Cohen et al. 2022). The matrix changes little between two measurements, so the last eigenvectors start the next search,
together with a random vector: alone they may have nothing of a direction that has become the sharpest meanwhile. In
networks of some thousand parameters this saves up to a quarter of the products of a search from scratch, and next to
none at a tolerance of 1e-2.

    >>> tracker = SharpnessTracker(model, "cross_entropy", (inputs, targets), every=10)
    >>> for step in range(1000):
    >>>     tracker.step(step, lr=0.1)
    >>>     ...  # one step of training
    >>> tracker.table()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from secondlook.curvature.eigenpairs import Eigenpairs, certify
from secondlook.curvature.flat import pack
from secondlook.curvature.hutchinson import probe_vectors
from secondlook.curvature.lanczos import eigsh
from secondlook.curvature.linear import FunctionOperator, SymmetricOperator, between
from secondlook.curvature.losses import named_loss
from secondlook.curvature.report import Eigenvalue, eigenvalues
from secondlook.curvature.study import KINDS, held_still

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Sharpness", "SharpnessTracker", "adam_diagonal"]

Precondition = Callable[[list[Tensor]], Sequence[Tensor]]
"""The diagonal D, a positive tensor in the shape of each parameter, as it is now."""


@dataclass(frozen=True)
class Sharpness:
    """One measurement.

    `eigenvalues` are the largest, descending, each with the interval that certainly holds one; `smallest` is the other
    end where it was asked for. `products` counts all products with the matrix; `converged` says whether the
    tolerance was met everywhere.
    """

    step: int
    eigenvalues: list[Eigenvalue]
    smallest: Eigenvalue | None
    products: int
    converged: bool
    lr: float | None = None

    @property
    def limit(self) -> float:
        """2 / learning rate; NaN where no rate was given."""
        return 2 / self.lr if self.lr else math.nan

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue; infinite unless the smallest is certainly positive, NaN if not measured."""
        if self.smallest is None:
            return math.nan
        return self.eigenvalues[0].value / self.smallest.value if self.smallest.low > 0 else math.inf

    def rows(self) -> list[dict[str, Any]]:
        """A row for each eigenvalue; what belongs to the whole measurement (from `products` on) stands in each."""
        found = [("largest", rank, e) for rank, e in enumerate(self.eigenvalues, 1)]
        found += [("smallest", 1, self.smallest)] if self.smallest else []
        common = {
            "products": self.products,
            "converged": self.converged,
            "limit": self.limit,
            "condition": self.condition,
        }
        return [
            {"step": self.step, "end": end, "rank": rank, "eigenvalue": e.value, "low": e.low, "high": e.high} | common
            for end, rank, e in found
        ]


class SharpnessTracker:
    """Follows the `top` largest eigenvalues of a model's Hessian or GGN through training.

    Args:
        loss: a mean over points, or the name of one: "cross_entropy" or "mse".
        data: the points that the matrix is about, `(inputs, targets)` or a list of such batches, on the model's device.
            They stay the same for all measurements: hand in a fixed subset where all would be too many.
        top: how many of the largest eigenvalues.
        every: measure at steps that are multiples of it.
        tol: residual of an eigenpair, relative to the matrix's norm, at which it counts as converged.
        smallest: follow the smallest eigenvalue, too, which gives the condition number. Expect it to be slow, or
            not to converge, where many eigenvalues lie close to it.
        precondition: measure $D^{-1/2} A D^{-1/2}$; gives D for the list of parameters, see `adam_diagonal`.
        mode: "keep" takes the model in the mode it is in; with batch norm in training mode each batch is then
            normalised by itself, and dropout in training mode is refused. "eval" takes it in evaluation mode. Either
            way the model is left as it was found: modes, gradients and running statistics.
        least: products that a search takes before it may end. A random vector makes up half of where it starts, and
            so many Lanczos steps bring out a direction of which the last eigenvectors know nothing: 8 found one that
            lies 10% above the old one, far above the bulk, in each of 200 trials with 2,000 parameters; 6 missed 6%.
        max_products: give up a search after so many products and say `converged=False`.
        generator: source of all chance; by default a fresh one of seed 0. The global one is never touched.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | Callable[[Tensor, Tensor], Tensor],
        data: Any,
        *,
        top: int = 1,
        every: int = 1,
        tol: float = 1e-3,
        matrix: Literal["hessian", "ggn"] = "hessian",
        smallest: bool = False,
        precondition: Precondition | None = None,
        mode: Literal["keep", "eval"] = "keep",
        least: int = 8,
        max_products: int = 200,
        generator: torch.Generator | None = None,
    ) -> None:
        if matrix not in KINDS:
            raise ValueError(f"matrix must be 'hessian' or 'ggn', got {matrix!r}")
        if min(top, every, least, max_products) < 1 or tol <= 0:
            raise ValueError("need top, every, least and max_products of at least 1 and a positive tol")
        self.model, self.criterion, self.data, self.mode = model, named_loss(loss), data, mode
        self.kind, self.precondition, self.every = KINDS[matrix], precondition, every
        generator = generator or torch.Generator().manual_seed(0)
        self._largest = _End(top, tol, least, max_products, generator)
        self._smallest = _End(1, tol, least, max_products, generator) if smallest else None
        self.measurements: list[Sharpness] = []

    def step(self, step: int, lr: float | None = None) -> Sharpness | None:
        """Measure at this step of training, and keep the result, if it is one of `every`; None otherwise.

        Raises `ValueError` where the model has diverged, so that there is no finite matrix.
        """
        if step % self.every:
            return None
        with held_still(self.model, self.mode):
            A = self.operator()
            ends = [self._largest.measure(A)]
            if self._smallest:
                ends.append(self._smallest.measure(_negative(A)))
        largest, *negative = map(eigenvalues, ends)
        smallest = [Eigenvalue(-e.value, -e.high, -e.low, e.residual) for (e,) in negative] or [None]
        products, converged = sum(p.products for p in ends), all(p.converged for p in ends)
        self.measurements.append(Sharpness(step, largest, smallest[0], products, converged, lr))
        return self.measurements[-1]

    def operator(self) -> SymmetricOperator:
        """The matrix as it is now, in the mode the model is in."""
        A = self.kind(self.model, self.criterion, self.data)
        if self.precondition is None:
            return A
        D = list(self.precondition(A.params))
        if [t.shape for t in D] != [p.shape for p in A.params]:
            raise ValueError("the preconditioner must have a tensor in the shape of each parameter that requires grad")
        root = pack(D).detach().to(A.device, A.dtype).rsqrt()
        if not bool((root.isfinite() & (root > 0)).all()):
            raise ValueError("the preconditioner must be positive and finite everywhere")
        return between(root, A)

    @property
    def products(self) -> int:
        """Products with the matrix in all measurements together."""
        return sum(m.products for m in self.measurements)

    def table(self) -> pd.DataFrame:
        """A row for each measured eigenvalue, see `Sharpness.rows`."""
        import pandas as pd

        return pd.DataFrame([row for m in self.measurements for row in m.rows()])


def adam_diagonal(optimizer: torch.optim.Optimizer) -> Precondition:
    r"""D of Adam or AdamW, $\sqrt{\hat v} + \epsilon$, by which it divides its mean gradient.

    With it gradient descent would be stable up to an eigenvalue of $2 / \eta$, and Adam, which averages gradients, up
    to $(2 + 2 \beta_1) / ((1 - \beta_1) \eta)$ (Cohen et al. 2022).
    """

    def diagonal(params: list[Tensor]) -> list[Tensor]:
        options = {p: group for group in optimizer.param_groups for p in group["params"]}
        D = []
        for p in params:
            state, group = optimizer.state.get(p, {}), options.get(p, {})
            if "exp_avg_sq" not in state:
                raise ValueError("a parameter has no second moment yet: is this Adam, and has it taken a step?")
            v = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
            D.append((v / (1 - group["betas"][1] ** float(state["step"]))).sqrt() + group["eps"])
        return D

    return diagonal


class _End:
    """The k largest eigenpairs of a matrix that changes a little from one measurement to the next."""

    def __init__(self, k: int, tol: float, least: int, most: int, generator: torch.Generator) -> None:
        self.k, self.tol, self.least, self.most, self.generator = k, tol, least, most, generator
        self.vectors: Tensor | None = None

    def measure(self, A: SymmetricOperator) -> Eigenpairs:
        """Certified pairs; `products` counts those of the certificate, too."""
        start = probe_vectors(
            A.shape[0], 1, generator=self.generator, distribution="gaussian", dtype=A.dtype, device=A.device
        )
        start, least = start / torch.linalg.vector_norm(start), 0
        if self.vectors is not None:
            # Old and random in equal parts: no direction is absent, but a new one is small at first, hence `least`.
            start, least = start + self.vectors.sum(1, keepdim=True) / self.k**0.5, self.least + self.k - 1
        pairs = eigsh(A, self.k, tol=self.tol, min_products=least, max_products=self.most, start=start)
        self.vectors = pairs.vectors
        return certify(A, pairs)


def _negative(A: SymmetricOperator) -> SymmetricOperator:
    return FunctionOperator(lambda v: -(A @ v), A.shape[0], dtype=A.dtype, device=A.device)
