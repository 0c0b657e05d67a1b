"""How near a piece of work comes to the least time in which this machine could do its operations.

An operation takes at least as long as its arithmetic, or its traffic, at the machine's best rate: it reads each tensor
that it is given and writes each one that it returns, once. The floor is the sum over all operations, one after another
and not fused. The rates are measured in the same process, each the best of several sizes, some of which fit a cache.
What is far above its floor is held up by something else: small kernels, waits, Python.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from secondlook.suite.runner import Run
from secondlook.suite.timing import seconds

REPEATS = 5
SIDES = (256, 1024, 4096)  # of the matrices that are multiplied; the last on a GPU only
ENTRIES = (2**14, 2**18, 2**22, 2**26)  # of the vectors that are copied
FREE = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "_local_scalar_dense")  # no traffic
PICKING = ("embedding", "gather", "index", "index_select")  # what is not picked need not be read


@dataclass(frozen=True)
class Rates:
    """A machine's best, in single precision."""

    flops: float  # operations a second, of a product of matrices
    bytes: float  # bytes a second, read and written, of a copy


@cache
def rates(device: str) -> Rates:
    """Measure them, on as many threads as torch uses; about a second."""
    flops, moved = [], []
    for n in SIDES if torch.device(device).type == "cuda" else SIDES[:-1]:
        a = torch.ones(n, n, device=device)
        flops.append(2 * n**3 / _least(lambda a=a: a @ a))
    for n in ENTRIES:
        x = torch.ones(n, device=device)
        y = torch.empty_like(x)
        moved.append(8 * n / _least(lambda x=x, y=y: y.copy_(x)))
    return Rates(max(flops), max(moved))


@dataclass
class Floor:
    """What a call did, and the least seconds for it."""

    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0


def floor(call: Callable[[], object], device: str) -> Floor:
    """The floor of a call, which is made once."""
    with _Operations(rates(device)) as seen:
        call()
    return seen.floor


def record(run: Run, call: Callable[[], object], *, method: str, problem: str) -> None:
    """Time a call and keep two measurements: `floor`, in percent of the time taken, and `arithmetic`, in GFLOP/s."""
    least, taken = floor(call, run.device), _least(call)
    run.record("floor", 100 * least.seconds / taken, method=method, problem=problem)
    run.record("arithmetic", 1e-9 * least.flops / taken, method=method, problem=problem)


class _Operations(TorchDispatchMode):
    """Adds up what goes by."""

    def __init__(self, best: Rates) -> None:
        super().__init__()
        self.best, self.floor = best, Floor()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = op(*args, **kwargs)
        name = op.overloadpacket.__name__
        if not op.is_view and name not in FREE:
            count = flop_registry.get(op.overloadpacket)
            flops = float(count(*args, **kwargs, out_val=out)) if count else 0.0
            made = _bytes(out)
            moved = 2 * made if name in PICKING else made + _bytes((args, kwargs))
            self.floor.flops += flops
            self.floor.bytes += moved
            self.floor.seconds += max(flops / self.best.flops, moved / self.best.bytes)
        return out


def _bytes(tensors: Any) -> int:
    """Of all tensors in a structure; a broadcast one counts what it has in memory."""
    found = (t for t in tree_leaves(tensors) if isinstance(t, Tensor))
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in found)


def _least(call: Callable[[], object]) -> float:
    seconds(call)
    return min(seconds(call) for _ in range(REPEATS))
