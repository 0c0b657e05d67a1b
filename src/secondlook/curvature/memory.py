"""A computation on a model, cut to fit into a stated memory: points a batch, vectors at a time, graphs to keep.

Half of the memory is for vectors as long as the parameters, the other half for graphs. What a graph takes is measured
on a few points of the data and extrapolated, for it grows linearly with them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secondlook.curvature.products import CurvatureOperator, fitting_chunk

__all__ = ["Plan", "few_points", "fit"]

# What the intermediate results of one product take, in graphs, with a margin: a test measures the peak of a process.
WORK = 3
FEW_POINTS = 4


@dataclass(frozen=True)
class Plan:
    """How to stay within the memory: the batches, whether to `keep` their graphs, and how many vectors at a time.

    `chunk` vectors are differentiated together; `vectors` of the length of the parameters fit into their half.
    `pieces` says how many points at most a batch was cut to, None when none was.
    """

    batches: Sequence[Any]
    keep: bool
    chunk: int
    vectors: int
    pieces: int | None


def fit(make: Callable[[Sequence[Any]], CurvatureOperator], batches: Sequence[Any], memory: float, cut: bool) -> Plan:
    """The plan for the operator that `make(batches)` builds, within `memory` bytes beside model and data.

    With `cut`, batches that need too much are cut along the first axis of all their tensors. Raises `ValueError`
    when that does not help.
    """
    half = memory / 2
    sizes, pieces, most = [], [], 0
    fixed = slope = 0.0
    for batch in batches:
        if not (cut and _can_be_cut(batch)):
            sizes.append(make([batch]).graph_bytes())
            pieces.append(batch)
            continue
        if not slope:
            fixed, slope = _line(make, batch)
        points = len(batch[-1])
        fitting = int((half / (1 + WORK) - fixed) / slope)
        if fitting < 1:
            raise ValueError(
                f"one point alone takes {_mb((fixed + slope) * 2 * (1 + WORK))}: allow more memory than {_mb(memory)}"
            )
        if points > fitting:
            most = max(most, fitting)
        count = -(-points // fitting)
        parts = [batch] if count == 1 else list(zip(*(t.tensor_split(count) for t in batch), strict=True))
        pieces += parts
        sizes += [fixed + slope * len(p[-1]) for p in parts]
    largest, total = max(sizes), sum(sizes)
    if largest * (1 + WORK) > half:
        raise ValueError(
            f"a batch takes {_mb(largest * (1 + WORK) * 2)} with its products: "
            f"allow more memory than {_mb(memory)}, or hand in smaller batches"
        )
    keep = total + WORK * largest <= half
    free = half - (total if keep else largest)
    operator = make(pieces)
    chunk = max(1, min(int(free / (WORK * largest)), fitting_chunk(int(largest), operator.device)))
    vectors = int(half / (operator.shape[0] * operator.dtype.itemsize))
    return Plan(pieces, keep, chunk, vectors, most or None)


def few_points(batch: Any, points: int = FEW_POINTS) -> Any:
    """The first few points of a batch, copied; the batch itself where it cannot be cut."""
    return tuple(t[:points].clone() for t in batch) if _can_be_cut(batch) else batch


def _can_be_cut(batch: Any) -> bool:
    tensors = isinstance(batch, tuple | list) and all(isinstance(t, Tensor) and t.ndim for t in batch)
    return tensors and len({len(t) for t in batch}) == 1 and len(batch[-1]) > 1


def _line(make: Callable[[Sequence[Any]], CurvatureOperator], batch: Any) -> tuple[float, float]:
    """Bytes of a graph as `fixed + slope * points`, from two sizes; copies, lest views count their whole storage."""
    more = min(FEW_POINTS, len(batch[-1]))
    less = more // 2
    small, large = (make([few_points(batch, k)]).graph_bytes() for k in (less, more))
    slope = max((large - small) / (more - less), 1.0)
    return max(small - less * slope, 0.0), slope


def _mb(size: float) -> str:
    return f"{size / 1e6:.3g} MB"
