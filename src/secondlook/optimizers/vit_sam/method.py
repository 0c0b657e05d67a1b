"""Sharpness-aware minimisation around any optimizer, as Chen, Hsieh and Gong (arXiv:2106.01548) train transformers.

Every step descends along the gradient of the loss at the worst point nearby, to first order, instead of the one here.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secondlook.optimizers.base import Base, check_range

TINY = 1e-12  # keeps the direction finite where the gradient vanishes


class SAM(Base):
    """Sharpness-aware minimisation: the base optimizer steps from w with the gradient at w + e, on the same batch.

        e = rho g / |g|                    g = grad L(w), the norm over all parameters of all groups together
        e = rho w^2 g / | |w| g |          adaptive: products by element, so that rescaled weights have the same e

    A step costs two evaluations of loss and gradient, and a copy of the parameters between them, from which w
    is restored exactly; what the base does besides following the gradient (decoupled weight decay) happens at w.
    Either `step(closure)`, or `first_step()` and `second_step()` after a `backward` each. The two evaluations should
    share whatever is random (dropout masks); layers of batch norm see `model` below.

    Groups and state are the base's, so that schedulers and `state_dict` act on it; `rho` and `adaptive` are options of
    groups too.

    Args:
        params: tensors or groups.
        base_optimizer: class, or any callable, `base_optimizer(groups, **base_options) -> Optimizer`.
        rho: radius, in the units of the weights; 0 is the base itself.
        adaptive: measure the radius relative to each weight (Kwon et al. 2021, without their constant).
        model: its batch norm layers keep their running statistics as they are in the second pass of
            `step(closure)`, which does not see the weights they are for.
        base_options: for the base (lr, momentum, weight_decay, maximize, ...).

    Raises:
        ValueError: `rho` is negative or not finite; what the base raises.
    """

    needs_closure = True

    def __init__(
        self,
        params: Iterable[Any],
        base_optimizer: Callable[..., Optimizer],
        rho: float = 0.1,
        adaptive: bool = False,
        *,
        model: nn.Module | None = None,
        **base_options: Any,
    ) -> None:
        if not callable(base_optimizer):
            raise TypeError(
                f"base_optimizer must be a class such as torch.optim.AdamW, got {type(base_optimizer).__name__}; "
                "its options follow as keywords"
            )
        super().__init__(params, {"rho": rho, "adaptive": adaptive})
        self.base = base_optimizer(self.param_groups, **base_options)
        self.defaults = {**self.base.defaults, **self.defaults}
        self.model = model
        self.climbed: tuple[list[Tensor], list[Tensor]] | None = None  # the parameters at w + e, and copies of w
        self._share()

    def _check(self, options: dict[str, Any]) -> None:
        check_range("rho", options["rho"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if not hasattr(self, "base"):
            return super().add_param_group(param_group)
        group = {"rho": self.defaults["rho"], "adaptive": self.defaults["adaptive"], **param_group}
        self._check(group)
        return self.base.add_param_group(group)

    @torch.no_grad()
    def first_step(self) -> None:
        """Climb from w to w + e along the gradients that are there.

        Raises:
            RuntimeError: a gradient is sparse, or w + e is where we stand already.
        """
        if self.climbed is not None:
            raise RuntimeError("first_step() was called twice: second_step() goes back to w and takes the step")
        everything = self._present()
        groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        groups = [(group, params) for group, params in groups if params]
        if not groups:
            return
        scaled = [_by_weight(params, [p.grad for p in params], group["adaptive"]) for group, params in groups]
        norms = [norm for part in scaled for norm in torch._foreach_norm(part)]
        norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms])) + TINY
        self.climbed = everything, torch._foreach_clone(everything)
        for (group, params), part in zip(groups, scaled, strict=True):
            climb = -group["rho"] if group.get("maximize") else group["rho"]  # away from where the base goes
            e = _by_weight(params, part, group["adaptive"])
            torch._foreach_add_(params, torch._foreach_mul(e, (climb / norm).to(params[0])))

    @torch.no_grad()
    def second_step(self) -> None:
        """Back to w, then the base's step with the gradients that are there now, those at w + e."""
        if self.climbed is None and any(p.grad is not None for group in self.param_groups for p in group["params"]):
            raise RuntimeError(
                "second_step() needs a first_step() before it, and a backward() at the point it leads to"
            )
        if self.climbed is not None:
            torch._foreach_copy_(*self.climbed)
            self.climbed = None
        self.base.step()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: clears the gradients, evaluates the loss, calls `backward` and returns the loss; called twice.

        Returns:
            What the closure returned first: the loss at w.

        Raises:
            RuntimeError: there is no closure, or a gradient is sparse.
        """
        loss, _ = self._begin(closure)
        self.first_step()
        with frozen_statistics(self.model):
            self._begin(closure)
        self.second_step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the base and the options of the groups."""
        self.base.load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state


def _by_weight(weights: list[Tensor], tensors: list[Tensor], adaptive: bool) -> list[Tensor]:
    """|w| times the tensors, by element; the tensors themselves where not adaptive."""
    return torch._foreach_mul(tensors, torch._foreach_abs(weights)) if adaptive else list(tensors)


@contextmanager
def frozen_statistics(model: nn.Module | None) -> Iterator[None]:
    """Batch norm layers of the model normalise by the batch as always, but leave their running statistics alone."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if model else []
    layers = [m for m in layers if m.training and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
