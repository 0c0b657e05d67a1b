"""The arms: losses of the margin with a fixed shape, EnsLoss, and EnsLoss without its order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from secondlook.optimizers.ensloss.method import EnsLoss, inverse_box_cox, raise_tail

Loss = Callable[[Tensor, Tensor], Tensor]  # scores and targets [..., B] of 0 and 1 to a scalar, the mean over all

FOCUS = 2.0  # the exponent of the focal loss (Lin et al., 2017)
EXP_NORM = 10.0  # the released code cuts the exponential loss's gradients to this norm


def margins(scores: Tensor, targets: Tensor) -> Tensor:
    """y f for targets of 0 and 1."""
    return (2 * targets.to(scores.dtype) - 1) * scores


def of_margin(loss: Callable[[Tensor], Tensor], scores: Tensor, targets: Tensor) -> Tensor:
    """Mean of a fixed loss of the margin."""
    return loss(margins(scores, targets)).mean()


def focal(z: Tensor) -> Tensor:
    """Cross-entropy, less of it where the class is already likely."""
    return F.softplus(-z) * torch.sigmoid(-z) ** FOCUS


def unsorted_derivatives(z: Tensor, generator: torch.Generator) -> Tensor:
    """EnsLoss's derivatives in random order: those of no convex loss."""
    z = z.detach()
    r = inverse_box_cox(torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype))
    return raise_tail(z, -r.clamp(max=1)) - 1e-6


def unsorted(generator: torch.Generator, scores: Tensor, targets: Tensor) -> Tensor:
    """The surrogate of EnsLoss with `unsorted_derivatives`."""
    z = margins(scores, targets)
    return (unsorted_derivatives(z, generator) * z).mean()


FIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "bce": lambda z: F.softplus(-z),
    "hinge": lambda z: F.relu(1 - z),
    "exp": lambda z: torch.exp(-z),
    "focal": focal,
}


def loss_of(arm: str, generator: torch.Generator) -> Loss:
    """The loss of an arm, NAME or NAME-copy; `generator` draws what is random in it."""
    match arm.removesuffix("-copy"):
        case "ensloss":
            return EnsLoss(generator=generator)
        case "unsorted":
            return partial(unsorted, generator)
        case name if name in FIXED:
            return partial(of_margin, FIXED[name])
        case name:
            raise ValueError(f"no loss {name!r}; use ensloss, unsorted or one of {', '.join(FIXED)}")
