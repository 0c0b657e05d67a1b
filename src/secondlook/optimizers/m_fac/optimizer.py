"""The M-FAC optimizer: gradient descent preconditioned by the inverse Fisher of its own last gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from secondlook.curvature import numel, pack, unpack
from secondlook.optimizers.base import Base, check_count, check_range
from secondlook.optimizers.m_fac.method import DynamicIHVP, check_damp


class MFAC(Base):
    """w <- w - lr * v with v = F^-1 g, or its running average, and F from the last `n_grads` mini-batch gradients.

    All parameters of all groups together are one vector, so the curvature crosses layers and groups. The window
    takes `n_grads` times the memory of the model (in float32, or the parameters' type if that is wider).

    Args:
        params: parameters on one device, or groups with `lr`, `momentum`, `weight_decay` and `maximize` of their own.
        lr: step size.
        n_grads: gradients in the window, m; zeros until it has filled.
        damp: multiple of the identity in F. With a large one M-FAC is SGD with step lr / damp.
        momentum: mu in v <- mu v + (1 - mu) F^-1 g.
        weight_decay: L2 term, added to the gradient before it enters the window.
        maximize: ascend instead of descend.

    Raises:
        ValueError: an option is out of range, or parameters are complex or on several devices.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        n_grads: int = 1024,
        damp: float = 1e-5,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        check_count("n_grads", n_grads)
        check_damp(damp)
        self.n_grads, self.damp = n_grads, damp
        self.window: DynamicIHVP | None = None  # made at the first step, when all groups are there
        self.average: Tensor | None = None  # v, [d]
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, options)

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay"):
            check_range(name, options[name])
        check_range("momentum", options["momentum"], high=1)
        if shared := {"n_grads", "damp"} & options.keys():
            raise ValueError(f"all groups share one window: set {shared.pop()} for the optimizer, not for a group")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if len(devices := {p.device for p in self._params()}) > 1:
            raise ValueError(f"the window lies on one device, the parameters on {sorted(map(str, devices))}; move them")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Put the gradient into the window and take one step; parameters without a gradient stay (their entry is 0).

        Returns what `closure` returned, or None. Raises RuntimeError for sparse gradients.
        """
        loss, present = self._begin(closure)
        if not present:
            return loss
        window = self._fitting_window()
        window.push(pack([g for group in self.param_groups for g in _gradients(group)]).to(window.G))
        direction = window.mul_latest()
        sizes = [numel(group["params"]) for group in self.param_groups]
        parts = zip(self.param_groups, direction.split(sizes), self.average.split(sizes), strict=True)
        for group, part, average in parts:
            if group["momentum"]:
                part = average.lerp_(part, 1 - group["momentum"])
            moves = zip(group["params"], unpack(part, group["params"]), strict=True)
            present = [(p, move) for p, move in moves if p.grad is not None]
            if present:
                torch._foreach_add_(*map(list, zip(*present, strict=True)), alpha=-float(group["lr"]))
        self._expose()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore options, average and window; the number of gradients must be the saved one."""
        super().load_state_dict(state_dict)
        self.window = self.average = None
        if saved := self.state.get("window"):
            window = self._fitting_window()
            window.load_state_dict(saved)
            self.average = saved["average"].to(window.G, copy=True)
            self._expose()

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _fitting_window(self) -> DynamicIHVP:
        """The window, made or widened where parameters have come since."""
        params = self._params()
        d = numel(params)
        if self.window is None:
            dtype = torch.float32
            for p in params:
                dtype = torch.promote_types(dtype, p.dtype)
            self.window = DynamicIHVP(self.n_grads, d, self.damp, dtype, params[0].device)
            self.average = self.window.G.new_zeros(d)
        elif (extra := d - self.window.G.shape[1]) > 0:
            self.window.widen(extra)
            self.average = torch.cat([self.average, self.average.new_zeros(extra)])
        return self.window

    def _expose(self) -> None:
        """Show window and average as state, where all that saves, copies or measures an optimizer looks for it."""
        self.state["window"] = self.window.state_dict() | {"average": self.average}


def _gradients(group: dict[str, Any]) -> list[Tensor]:
    """A tensor for every parameter of the group: the gradient to descend, or zeros where there is none."""
    present = [p for p in group["params"] if p.grad is not None]
    grads = [p.grad for p in present]
    if grads and group["maximize"]:
        grads = torch._foreach_neg(grads)
    if grads and group["weight_decay"]:
        grads = torch._foreach_add(grads, present, alpha=group["weight_decay"])
    found = dict(zip(present, grads, strict=True))
    return [found[p] if p in found else torch.zeros_like(p) for p in group["params"]]
