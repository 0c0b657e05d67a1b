"""What the family's optimizers share: what they need is asked for in one way, and options are checked early."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from secondlook.curvature.flat import pack, unpack


class Base(Optimizer):
    """An optimizer that says what a step needs beyond gradients; training loops look before each step.

    Attributes:
        wants_graph: the next step differentiates the gradients: call `loss.backward(create_graph=True)`.
        needs_closure: `step` must be given a closure that clears the gradients, evaluates the loss, calls `backward`
            (with `create_graph=True` where `wants_graph`) and returns the loss. It may be called several times.
        full_precision: parameters must be float32 or float64, as those of methods that decompose matrices.
        generator: source of whatever is random, saved in `state_dict`; None where nothing is.

    Subclasses write `_check` for the options of a group, and `_update` for one group's step along its gradients. Where
    a step is more than that they write `step` itself, which starts with `_begin`.
    """

    wants_graph: bool = False
    needs_closure: bool = False
    full_precision: bool = False
    generator: torch.Generator | None = None

    def _check(self, options: dict[str, Any]) -> None:
        """Raise ValueError for an option that is out of range."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.is_complex():
                raise ValueError("complex parameters are not supported; pass torch.view_as_real(parameter)")
            if self.full_precision and p.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"parameters must be float32 or float64, got {p.dtype}; train it under torch.autocast")

    def _begin(self, closure: Callable[[], Any] | None) -> tuple[Any, list[Tensor]]:
        """What the closure returned (or None), and all parameters that now have a gradient, in the groups' order."""
        if closure is None and self.needs_closure:
            raise RuntimeError(f"{type(self).__name__} evaluates the loss itself: call step(closure)")
        loss = None if closure is None else torch.enable_grad()(closure)()
        return loss, self._present()

    def _present(self) -> list[Tensor]:
        """All parameters that have a gradient, in the groups' order. Raises RuntimeError where one is sparse."""
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any(p.grad.is_sparse for p in params):
            raise RuntimeError(f"{type(self).__name__} needs dense gradients; build the embedding with sparse=False")
        return params

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return what the closure, if there is one, returned.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss, _ = self._begin(closure)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                grads = [p.grad.detach() for p in params]
                self._update(group, params, list(torch._foreach_neg(grads)) if group["maximize"] else grads)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        """Step parameters of a group down `grads`, their gradients (with the sign changed where it maximizes)."""
        raise NotImplementedError

    def _own_stream(self, generator: torch.Generator | None) -> torch.Generator:
        """`generator`, or a new one: `torch.manual_seed` decides the run, the global state is left alone."""
        device = self.param_groups[0]["params"][0].device
        return generator or torch.Generator(device).manual_seed(torch.initial_seed())

    def state_dict(self) -> dict[str, Any]:
        """The usual dictionary and the state of the random stream, so that a resumed run draws the same numbers."""
        stream = {} if self.generator is None else {"generator": self.generator.get_state()}
        return {**super().state_dict(), **stream}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore state, options and, where the dictionary has it, the random stream."""
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        if self.generator is not None and "generator" in state_dict:
            self.generator.set_state(state_dict["generator"].cpu())

    @property
    def stacks(self) -> Joined:
        """Batches of states of one shape; a copied or unpickled optimizer starts without."""
        return vars(self).setdefault("_stacks", Joined(torch.stack, lambda whole, _: whole.unbind()))

    @property
    def vectors(self) -> Joined:
        """Flat vectors of states of any shapes, of one type; a copied or unpickled optimizer starts without."""
        return vars(self).setdefault("_vectors", Joined(pack, unpack))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class Joined:
    """Tensors of which the states of several parameters hold the parts: found again without copying.

    A state that was changed from outside (loaded, say) holds tensors of its own, which are joined afresh.
    """

    def __init__(
        self, join: Callable[[list[Tensor]], Tensor], part: Callable[[Tensor, list[Tensor]], Sequence[Tensor]]
    ) -> None:
        self._join, self._part = join, part
        self._kept: dict[tuple[int, str], tuple[Tensor, Sequence[Tensor], list[dict[str, Any]]]] = {}

    def gather(self, states: list[dict[str, Any]], name: str) -> Tensor:
        """What the states have under `name`, joined; from then on they hold its parts."""
        whole, parts, _ = self._kept.get((id(states[0]), name), (None, (), None))
        if len(states) == len(parts) and _held(name, parts, states):
            return whole
        whole = self._join([state[name] for state in states])
        self.keep(states, name, whole)
        # Other states together than before: what they have left is let go.
        self._kept = {key: kept for key, kept in self._kept.items() if _held(key[1], *kept[1:])}
        return whole

    def keep(self, states: list[dict[str, Any]], name: str, values: Tensor) -> None:
        """Give each state its part of `values`."""
        parts = self._part(values, [state.get(name) for state in states])
        self._kept[id(states[0]), name] = values, parts, states
        for state, own in zip(states, parts, strict=True):
            state[name] = own


def _held(name: str, parts: Sequence[Tensor], states: list[dict[str, Any]]) -> bool:
    """Whether the states still have those very tensors under `name`."""
    return all(state.get(name) is part for part, state in zip(parts, states, strict=True))


def check_range(
    name: str, value: float, low: float = 0.0, high: float = inf, *, low_open: bool = False, high_open: bool = True
) -> None:
    """ValueError unless `value` lies between `low` and `high`; ends belong to the range where they are not open."""
    above = value > low if low_open else value >= low
    below = value < high if high_open else value <= high
    if not (above and below):
        ends = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
        raise ValueError(f"{name} must lie in {ends}, got {value!r}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """ValueError unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_betas(betas: tuple[float, ...]) -> None:
    """ValueError unless `betas` are two decay rates in [0, 1)."""
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
