"""How optimizers average gradients: velocity <- a g + b velocity."""

from collections.abc import Callable
from typing import Literal

from torch.optim import Optimizer

Momentum = Literal["none", "hb", "nesterov", "adam"]
WEIGHTS: dict[Momentum, Callable[[float], tuple[float, float]]] = {  # (a, b) from the decay
    "none": lambda decay: (1.0, 0.0),
    "hb": lambda decay: (1.0, decay),
    "nesterov": lambda decay: (1.0 + decay, decay**2),
    "adam": lambda decay: (1.0 - decay, decay),
}


def averaging_of(base: Optimizer) -> tuple[Momentum, float]:
    """What `base` does, and its decay (0.9 where it does nothing)."""
    options = base.defaults
    if "betas" in options:
        return "adam", options["betas"][0]
    if options.get("momentum"):
        return ("nesterov" if options.get("nesterov") else "hb"), options["momentum"]
    return "none", 0.9
