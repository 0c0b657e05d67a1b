r"""FARMS (arXiv 2506.06280): heavy-tail exponents of weight matrices from windows of one fixed aspect ratio.

The spectrum of $W^\top W$ depends on the shape of $W$ even where the entries are pure noise (Marchenko and Pastur),
and so does the exponent fitted to its tail. FARMS cuts every matrix into windows of one shape, pools their spectra,
and fits once. Exponents then set learning rates (TempBalance) or sparsities (AlphaPruning): a smaller exponent is a
heavier tail and counts as better trained.
"""

import math
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d
FEWEST = 5  # eigenvalues; a layer with fewer has no exponent
BINS = 100  # of the histogram in which the peak fit looks for the peak


def pl_alpha_hill(eigs: Tensor, xmin: float | Literal["median", "peak"] = "median") -> float:
    """Hill's estimate of alpha in a density ~ e^-alpha above a threshold.

    With the n eigenvalues from the threshold e_min up, `alpha = 1 + n / sum_j ln(e_j / e_min)`.

    Args:
        eigs: eigenvalues `[N]` in any order, N >= 2, not negative.
        xmin: the threshold itself, or how to find it. "median" (images): eigenvalue number N // 2 from below.
            "peak" (language models): of the eigenvalues near the peak of the histogram of log10 e, the one whose fit
            has the smallest Kolmogorov-Smirnov distance.

    Raises:
        ValueError: fewer than two eigenvalues, negative or non-finite ones, or a threshold that is not positive.
    """
    if eigs.ndim != 1 or len(eigs) < 2:
        raise ValueError(f"a tail needs two eigenvalues or more in one vector, got shape {tuple(eigs.shape)}")
    if not bool(((eigs >= 0) & (eigs < math.inf)).all()):
        raise ValueError("eigenvalues of W^T W are finite and not negative: hand in squared singular values")
    eigs = eigs.sort().values
    if xmin == "peak":
        return _peak_fit(eigs)
    if xmin == "median":
        tail, start = eigs[len(eigs) // 2 :], eigs[len(eigs) // 2]
    elif isinstance(xmin, str):
        raise ValueError(f"xmin must be 'median', 'peak' or a number, got {xmin!r}")
    else:
        tail, start = eigs[eigs >= xmin], eigs.new_tensor(xmin)
    if not len(tail) or start <= 0:
        raise ValueError(f"the threshold must be positive and have eigenvalues above it, got {float(start):.3g}")
    return 1 + float(len(tail) / (tail.log().sum() - len(tail) * start.log()))


def _peak_fit(eigs: Tensor) -> float:
    """The fit of smallest Kolmogorov-Smirnov distance among thresholds around the histogram's peak."""
    eigs = eigs[eigs > 0]
    logs = eigs.log10()
    counts = torch.histc(logs, BINS, float(logs[0]), float(logs[-1]))
    peak = 10 ** float(torch.linspace(float(logs[0]), float(logs[-1]), BINS + 1, dtype=logs.dtype)[counts.argmax()])
    best = (math.inf, math.nan)
    for i in range(len(eigs) - 1):
        # The released code takes a logarithm for the lower limit only; the limit is therefore rarely active.
        if not math.log10(0.95 * peak) <= eigs[i] <= 1.5 * peak:
            continue
        tail = eigs[i:] / eigs[i]
        alpha = 1 + float(len(tail) / tail.log().sum())
        empirical = torch.arange(len(tail), dtype=tail.dtype, device=tail.device) / len(tail)
        if alpha > 1:
            best = min(best, (float((1 - tail ** (1 - alpha) - empirical).abs().max()), alpha))
    return best[1]


def null_alpha(aspect: float, points: int = 20_000) -> float:
    r"""The median fit on pure noise: what `pl_alpha_hill` tends to for large random matrices of one aspect ratio.

    By the Marchenko-Pastur law with ratio $\beta \le 1$; $x = 1 + \beta + 2\sqrt\beta\cos t$ has density
    $2\sin^2 t / (\pi x)$ in $t \in [0, \pi]$.
    """
    if not 0 < aspect < math.inf:
        raise ValueError(f"the aspect ratio must be positive, got {aspect}")
    beta = min(aspect, 1 / aspect)
    t = (torch.arange(points, dtype=torch.float64) + 0.5) * (math.pi / points)
    x = 1 + beta + 2 * math.sqrt(beta) * t.cos()  # descending
    weight = 2 * t.sin() ** 2 / (points * x)
    upper = weight.cumsum(0) <= 0.5
    log = x[upper].log()
    return 1 + 1 / float((weight[upper] * (log - log[-1])).sum() / weight[upper].sum())


def farms_eigs(W: Tensor, window: int = 100, q: float = 1.0, ops: int = 9, stride: int | None = None) -> Tensor:
    """Pooled eigenvalues `[k * min(r, c)]`, ascending, of all k windows of `W`.

    Args:
        W: `[rows, cols]`, oriented as the layer stores it.
        window: rows r of a window; cut to the matrix where it does not fit, so that the aspect ratio stays.
        q: aspect ratio; a window has c = int(q r) columns.
        ops: windows along either side, evenly spread; fewer where they would coincide.
        stride: rows and columns between windows, in place of `ops`.
    """
    if W.ndim != 2:
        raise ValueError(f"windows are cut from matrices, got shape {tuple(W.shape)}")
    if window < 1 or q <= 0 or (ops < 2 if stride is None else stride < 1):
        raise ValueError(
            f"window and stride must be at least 1, q positive, ops at least 2; got {window=}, {stride=}, {q=}, {ops=}"
        )
    r = min(window, len(W), int(W.shape[1] / q))
    c = int(q * r)
    if min(r, c) < 1:
        raise ValueError(f"no window of aspect ratio {q:g} fits into {tuple(W.shape)}")
    starts = product(_starts(len(W), r, ops, stride), _starts(W.shape[1], c, ops, stride))
    windows = torch.stack([W[i : i + r, j : j + c] for i, j in starts])
    return torch.linalg.svdvals(windows).square().flatten().sort().values


def _starts(size: int, window: int, ops: int, stride: int | None) -> range:
    """Where windows begin along one side."""
    room = size - window
    step = stride or max(1, room // (ops - 1))
    count = room // step + 1
    return range(0, step * (count if stride else min(ops, count)), step)


def _slices(weight: Tensor) -> Tensor:
    """A convolution's kernel `[out, in, h, w]` as h w matrices `[h w, rows, cols]` with rows >= cols."""
    slices = weight.flatten(2).permute(2, 0, 1)
    return slices if slices.shape[1] >= slices.shape[2] else slices.mT


def conv_block_eigs(weight: Tensor, q: float = 1.0) -> list[Tensor]:
    """Pooled eigenvalues of a convolution, one vector for every block position along the longer side of its slices."""
    slices = _slices(weight)
    cols = slices.shape[2]
    r, c = (max(1, int(cols / q)), cols) if q > 1 else (cols, max(1, int(cols * q)))
    blocks = (slices[:, b * r : (b + 1) * r, :c] for b in range(slices.shape[1] // cols))
    return [torch.linalg.svdvals(block).square().flatten() for block in blocks]


@torch.no_grad()
def farms_alpha(
    module: nn.Module,
    window: int = 100,
    q: float = 1.0,
    ops: int = 9,
    stride: int | None = None,
    xmin: float | Literal["median", "peak"] = "median",
) -> float:
    """Exponent of a linear layer from pooled windows, of a convolution as the mean over block positions.

    Fits are made in float32 as in the released code. NaN for a layer of fewer than five eigenvalues.
    """
    weight = _weight(module)
    pools = conv_block_eigs(weight, q) if weight.ndim == 4 else [farms_eigs(weight, window, q, ops, stride)]
    if sum(map(len, pools)) < FEWEST:
        return math.nan
    return sum(pl_alpha_hill(pool, xmin) for pool in pools) / len(pools)


@torch.no_grad()
def raw_alpha(module: nn.Module, xmin: float | Literal["median", "peak"] = "median") -> float:
    """Exponent of the whole weight matrix, of a convolution from all its slices together: what FARMS replaces."""
    weight = _weight(module)
    eigs = torch.linalg.svdvals(_slices(weight) if weight.ndim == 4 else weight).square().flatten()
    return pl_alpha_hill(eigs, xmin) if len(eigs) >= FEWEST else math.nan


def _weight(module: nn.Module) -> Tensor:
    if not isinstance(module, Layer):
        raise TypeError(f"exponents are those of Linear and Conv2d layers, not of a {type(module).__name__}")
    return module.weight.detach().float()
