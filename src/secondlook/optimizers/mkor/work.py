"""Operations that a piece of code takes, counted where PyTorch dispatches them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ELEMENTWISE = {"add", "add_", "mul", "div", "sqrt", "rsub", "reciprocal", "eye", "ones"}
FREE = {"view", "t", "permute", "diagonal", "detach"}


class Work(TorchDispatchMode):
    """Counts floating-point operations inside a `with` block, in `operations`.

    Raises:
        NotImplementedError: an operation whose count is not known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name, tensors = func.overloadpacket.__name__, [a for a in args if isinstance(a, Tensor)]
        counts: dict[str, Callable[[], float]] = {
            "mv": lambda: 2 * tensors[0].numel(),
            "dot": lambda: 2 * tensors[0].numel(),
            "mm": lambda: 2 * tensors[0].numel() * tensors[1].shape[1],
            "addr": lambda: 3 * out.numel(),
        }
        if name in counts:
            self.operations += counts[name]()
        elif name in ELEMENTWISE:
            self.operations += out.numel()
        elif name not in FREE:
            raise NotImplementedError(f"the operations of {name} are not known here; add them to the table")
        return out
