"""A GPU's manners without a GPU: tensors put on "cuda" stay in the CPU's memory, but may not meet those of the CPU.

What a machine without a GPU cannot notice is noticed here: tensors of two devices in one operation, a random stream of
the wrong device, NumPy reading device memory, and how often the host waits for what the device computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch._decomp.decompositions_for_jvp  # compiles torch's own functions at its first import: before they change
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
COPIES = {aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default}  # between any two devices
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
JOINS = {aten.cat.default, aten.stack.default}  # elsewhere a CPU tensor of no axes is taken for a number
WAITS = {
    aten._linalg_check_errors.default,
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
FACTORIES = {
    *("arange", "empty", "empty_permuted", "empty_strided", "eye", "full", "linspace", "logspace", "ones", "rand"),
    *("randint", "randn", "randperm", "scalar_tensor", "tril_indices", "triu_indices", "zeros"),
}


def _memory(t: Tensor) -> list[torch.UntypedStorage]:
    while torch._C._functorch.is_functorch_wrapped_tensor(t):  # inside a transform of torch.func
        t = torch._C._functorch.get_unwrapped(t)
    match t.layout:
        case torch.sparse_coo:
            parts = [t._indices(), t._values()]
        case torch.sparse_csr:
            parts = [t.crow_indices(), t.col_indices(), t.values()]
        case _:
            parts = [t]
    return [part.untyped_storage() for part in parts]


def place(t: Tensor) -> torch.device | None:
    """The device of a tensor; None for one that torch made for its own use, which fits whatever it meets."""
    return getattr(_memory(t)[-1], "place", None)


def put(t: Tensor, device: torch.device | None) -> Tensor:
    for part in _memory(t):
        part.place = device
    return t


def named(device: Any) -> torch.device:
    return CUDA if torch.device(device).type == "cuda" else CPU


class StandInGPU(TorchDispatchMode):
    """Notes where results are and refuses what a GPU refuses.

    Attributes:
        operations: how many it did.
        waits: how often the host waited, by what it waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.waits: Counter[str] = Counter()
        self.streams: dict[int, torch.device] = {}  # of random generators, by address

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = tree_leaves((args, kwargs))
        tensors = [t for t in leaves if isinstance(t, Tensor)]
        places = [place(t) for t in tensors]
        if op in COPIES:
            device = places[0] if places else None
        elif CUDA in places:
            device = CUDA
            self.operations += 1
            guests = [t for t, its in zip(tensors, places, strict=True) if its == CPU and (t.ndim or op in JOINS)]
            if guests and not (op in INDEXING and places[0] == CUDA):
                shapes = ", ".join(str(tuple(t.shape)) for t in guests)
                raise RuntimeError(f"{op}: expected all tensors on cuda:0, but those of shapes {shapes} are on the CPU")
            if op in WAITS or (op is aten.index.Tensor and any(t.dtype == torch.bool for t in tensors[1:])):
                self.waits[str(op)] += 1
        else:
            device = CPU if CPU in places else None
        if (wanted := kwargs.get("device")) is not None:
            device = CUDA if named(wanted) == CUDA else device
            kwargs["device"] = CPU
        for stream in leaves:
            if isinstance(stream, torch._C.Generator) and device is not None:
                self.fits(stream, device)
        out = op(*args, **kwargs)
        for t in tree_leaves(out) if device is not None else ():
            if isinstance(t, Tensor):
                put(t, device)
        return out

    def fits(self, stream: torch.Generator | None, device: torch.device) -> None:
        its = device if stream is None else self.streams.get(stream._cdata, CPU)
        if its != device:
            raise RuntimeError(f"expected a generator on {device} but found one on {its}")


@contextmanager
def stand_in_gpu() -> Iterator[StandInGPU]:
    """Within it torch takes "cuda" for a device that is here."""
    gpu = StandInGPU()
    real = {name: getattr(Tensor, name) for name in ("to", "numpy", "tolist", "new_tensor", "__array__")}
    RealGenerator, deepcopy, parse = torch.Generator, torch.UntypedStorage.__deepcopy__, torch._C._nn._parse_to

    class Generator(RealGenerator):
        def __new__(cls, device: Any = "cpu") -> Generator:
            stream = super().__new__(cls, "cpu")
            stream.place = gpu.streams[stream._cdata] = named(device)
            return stream

        @property
        def device(self) -> torch.device:
            return self.place

    def move(
        t: Tensor, device: Any = None, dtype: torch.dtype | None = None, copy: bool = False, **options: Any
    ) -> Any:
        options = {name: value for name, value in options.items() if name == "memory_format"}
        here, there = place(t) or CPU, t.device if device is None else named(device)
        if here == there and not copy:
            return real["to"](t, dtype=dtype or t.dtype, **options)
        if here == CUDA and there == CPU:
            gpu.waits["a copy to the host"] += 1
        return put(real["to"](t, dtype=dtype or t.dtype, copy=True, **options), there)

    def to(t: Tensor, *args: Any, **options: Any) -> Tensor:
        kinds = {torch.dtype: "dtype", torch.device: "device", str: "device", int: "device"}
        for value in args:
            if isinstance(value, Tensor):
                options = {"device": value.device, "dtype": value.dtype} | options
            elif type(value) in kinds:
                options[kinds[type(value)]] = value
        return move(t, **options)

    def host_only(name: str) -> Callable[..., Any]:
        def method(t: Tensor, *args: Any, **options: Any) -> Any:
            if place(t) == CUDA:
                raise TypeError("can't convert a tensor on cuda:0 to numpy; use Tensor.cpu() first")
            return real[name](t, *args, **options)

        return method

    def tolist(t: Tensor) -> Any:
        gpu.waits["tolist"] += place(t) == CUDA
        return real["tolist"](t)

    def placed(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def factory(*args: Any, device: Any = None, **options: Any) -> Tensor:
            if "out" in options:
                return make(*args, **options)
            there = CPU if device is None else named(device)
            gpu.fits(options.get("generator"), there)
            return put(make(*args, device=CPU, **options), there)

        return factory

    def moved(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def from_data(data: Any, *args: Any, device: Any = None, **options: Any) -> Tensor:
            made = make(data, *args, **options)
            if not isinstance(data, Tensor):
                put(made, CPU)
            return made if device is None else made.to(device)

        return from_data

    def new_tensor(t: Tensor, data: Any, *, device: Any = None, **options: Any) -> Tensor:
        return put(real["new_tensor"](t, data, **options), t.device if device is None else named(device))

    def copied(storage: torch.UntypedStorage, memo: Any) -> torch.UntypedStorage:
        copy = deepcopy(storage, memo)
        copy.place = getattr(storage, "place", None)
        return copy

    def parse_to(*args: Any, **options: Any) -> Any:
        like = args[0] if args and isinstance(args[0], Tensor) else options.pop("tensor", None)
        return parse(*args, **options) if like is None else (like.device, like.dtype, False, None)

    replaced: dict[Any, dict[str, Any]] = {
        torch: {"Generator": Generator}
        | {name: placed(getattr(torch, name)) for name in FACTORIES}
        | {name: moved(getattr(torch, name)) for name in ("tensor", "as_tensor", "asarray", "from_numpy")},
        torch.UntypedStorage: {"__deepcopy__": copied},
        torch._C._nn: {"_parse_to": parse_to},
        torch._prims_common: {
            "check_same_device": lambda *_, **__: None
        },  # torch's own formulas have tensors of theirs
        torch.cuda: {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "synchronize": lambda *_: None,
            "max_memory_allocated": lambda *_: 0,
            "reset_peak_memory_stats": lambda *_: None,
            "get_rng_state": lambda *_: None,
            "set_rng_state": lambda *_: None,
            "get_device_name": lambda *_: "a stand-in for a GPU",
        },
        Tensor: {
            "device": property(lambda t: place(t) or CPU),
            "is_cuda": property(lambda t: place(t) == CUDA),
            "is_cpu": property(lambda t: place(t) != CUDA),
            "to": to,
            "cuda": lambda t, *_, **__: t.to(CUDA),
            "cpu": lambda t: t.to(CPU),
            "tolist": tolist,
            "new_tensor": new_tensor,
            "numpy": host_only("numpy"),
            "__array__": host_only("__array__"),
        },
    }
    with pytest.MonkeyPatch.context() as patch, gpu:
        for where, names in replaced.items():
            for name, value in names.items():
                patch.setattr(where, name, value, raising=False)
        yield gpu
