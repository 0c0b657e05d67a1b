"""EnsLoss: random derivatives that some convex, classification-calibrated loss of the margin could have."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from secondlook.optimizers.base import check_count, check_range


def inverse_box_cox(u: Tensor, lam: float = 0.0) -> Tensor:
    """Positive numbers from normal ones: exp(u) at lam = 0, max(0, 1 + lam u)^(1/lam) elsewhere; may be infinite."""
    return u.exp() if lam == 0 else (1 + lam * u).clamp(min=0).pow(1 / lam)


def by_rank(margins: Tensor, derivatives: Tensor) -> Tensor:
    """The same derivatives [..., B], the k-th smallest given to the k-th smallest margin [..., B] of its row.

    A derivative that does not fall as the margin grows is that of a convex loss.
    """
    order = margins.argsort(dim=-1, stable=True)
    return torch.empty_like(derivatives).scatter_(-1, order, derivatives.sort(-1).values)


def raise_tail(margins: Tensor, derivatives: Tensor) -> Tensor:
    """Derivatives divided by the margin beyond 1, so that the loss cannot fall faster there than a logarithm."""
    return torch.where(margins > 1, derivatives / margins.clamp(min=1), derivatives)


def random_calibrated_derivatives(
    margins: Tensor,
    lam: float = 0.0,
    generator: torch.Generator | None = None,
    u: Tensor | None = None,
    *,
    clip: float = 1.0,
    tail: bool = True,
    offset: float = 1e-6,
) -> Tensor:
    """Derivatives d [..., B] of a random loss at the margins z = y f(x) [..., B]; each row of B is a batch of its own.

    Along increasing margins d never falls (the loss is convex), and it is negative (the loss is calibrated): it
    lies in [-clip - offset, -offset]. `u` are the normal draws behind it, of the margins' shape; without them they
    come from `generator` (None: torch.initial_seed decides).
    """
    z = margins.detach()
    if u is None:
        generator = generator or torch.Generator(z.device).manual_seed(torch.initial_seed())
        u = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
    d = by_rank(z, -inverse_box_cox(u, lam).clamp(max=clip))
    return (raise_tail(z, d) if tail else d) - offset


class EnsLoss:
    """A loss for scores of two classes, another one at every call: `loss_fn(scores, targets).backward()`.

    The value returned is only a vehicle: its gradient is that of the drawn loss, its size means nothing.

    Args:
        lam: shape of the draws, see `inverse_box_cox`; 0 in the released code.
        clip: largest slope.
        tail: divide by the margin where it exceeds 1.
        offset: subtracted last, which keeps every slope negative.
        generator: source of the draws, on the scores' device; without one `torch.manual_seed` decides.
        period: with P > 0, `start_epoch` draws a new lam from U(-1, 1) at every P-th epoch (released, off by default).

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        lam: float = 0.0,
        clip: float = 1.0,
        tail: bool = True,
        offset: float = 1e-6,
        generator: torch.Generator | None = None,
        period: int = 0,
    ) -> None:
        if not math.isfinite(lam):
            raise ValueError(f"lam must be finite, got {lam!r}")
        check_range("clip", clip, low_open=True)
        check_range("offset", offset)
        check_count("period", period, least=0)
        self.lam, self.clip, self.tail, self.offset, self.period = lam, clip, tail, offset, period
        self.generator = generator

    def start_epoch(self, epoch: int) -> None:
        """Say which epoch begins, counted from 1; only needed where `period` is set."""
        if self.period and epoch % self.period == 0:
            stream = self._stream(self.generator.device if self.generator else "cpu")
            self.lam = 2 * float(torch.rand((), generator=stream, device=stream.device)) - 1

    def __call__(self, scores: Tensor, targets: Tensor, u: Tensor | None = None) -> Tensor:
        """A scalar whose gradient with respect to scores [B] is y d(y f) / B, for targets [B] of 0 and 1, y = 2 t - 1.

        Rows of [..., B] are batches of their own; the scalar is the mean over all. `u` are the normal draws.

        Raises:
            ValueError: the shapes differ; nothing is broadcast.
        """
        if scores.shape != targets.shape or (u is not None and u.shape != scores.shape):
            raise ValueError(
                f"scores {tuple(scores.shape)}, targets {tuple(targets.shape)} and draws must have one shape; "
                "squeeze the scores of a network with one output"
            )
        margins = (2 * targets.to(scores.dtype) - 1) * scores
        stream = self._stream(scores.device) if u is None else None
        options = {"clip": self.clip, "tail": self.tail, "offset": self.offset}
        return (random_calibrated_derivatives(margins, self.lam, stream, u, **options) * margins).mean()

    def _stream(self, device: torch.device | str) -> torch.Generator:
        """The caller's stream, or from the first call on one of its own."""
        self.generator = self.generator or torch.Generator(device).manual_seed(torch.initial_seed())
        return self.generator
