"""The rules that are compared, and how a single update is looked at."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from secondlook.optimizers.auon.method import AuON, Muon

MOMENTUM = 0.95


def sgd(params: list[Tensor], lr: float, momentum: float = MOMENTUM) -> SGD:
    """Nesterov momentum as an average of gradients: torch sums them, which is 1 / (1 - momentum) times as much."""
    return SGD(params, lr * (1 - momentum), momentum=momentum, nesterov=momentum > 0)


RULES: dict[str, Callable[..., Optimizer]] = {
    "sgd": sgd,
    "normalised-sgd": partial(AuON, gamma=0.0, normalise=True, aspect=True),
    "auon": AuON,
    "auon-printed": partial(AuON, gamma=1.0, normalise=True, aspect=True),
    "hybrid": partial(AuON, hybrid=True),
    "hybrid-one-step": partial(AuON, hybrid=True, ns_steps=1),
    "muon": partial(Muon, adjust_lr_fn="none"),
    "adamw": partial(AdamW, weight_decay=0.0),
    "torch-muon": partial(torch.optim.Muon, weight_decay=0.0),
}


def direction(rule: str, u: Tensor) -> Tensor:
    """What a rule subtracts from a matrix for the momentum `u`, at learning rate 1."""
    w = torch.zeros_like(u, requires_grad=True)
    w.grad = u.clone()
    RULES[rule]([w], lr=1.0, momentum=0.0).step()  # without memory the momentum is the gradient
    return -w.detach()


class _Count(TorchDispatchMode):
    """Counts scalar operations: those of matrix products by their formulas, otherwise one an entry."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        elif not func.is_view:
            # A norm writes one number and reads many; an in-place step on a list returns nothing.
            self.total += max(sum(t.numel() for t in tree_leaves(x) if isinstance(t, Tensor)) for x in (args, out))
        return out


def counted(rule: str, n: int) -> int:
    """Scalar operations of a rule's second step on an n by n matrix; the tensors hold no numbers."""
    w = torch.zeros(n, n, device="meta", requires_grad=True)
    w.grad = torch.zeros_like(w)
    opt = RULES[rule]([w], lr=1.0)
    opt.step()  # makes the state
    with _Count() as count:
        opt.step()
    return count.total
