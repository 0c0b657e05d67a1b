"""The family's common protocol: quantizers of one weight matrix, on the same layers, with the same grids and bits.

Every method gets the weight ``[rows, columns]`` and the Hessian ``2 E[x x^T]`` of the layer's inputs, and returns
integers on one min-max grid a row, so that storage is the same for all. Recorded are the share of the layer's output
energy that is lost (lower is better) and the time, all methods interleaved in one process. Layers are random weights
with strongly correlated Gaussian inputs, square or four to one as in a transformer; nothing is trained or fetched.

Your own method: a function ``(weight, hessian, bits) -> Tensor | QuantizedWeight``, named as
``package.module:function``; a tensor holds the quantized values themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

from secondlook.compression.gptq import QuantizedWeight, gptq_quantize, obq_quantize, rtn_quantize
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

METRICS = {
    "output_error": {"label": "lost share of the layer's output energy", "unit": "", "step": "bits per weight"},
    "distinct_values": {"label": "most distinct values in a row", "unit": "", "step": "bits per weight"},
    "seconds": {"label": "time per layer", "unit": "s", "step": "bits per weight", "timing": True},
}
SCALES = {
    "smoke": {"layers": [[16, 16]], "bits": [3], "draws": 2, "repeats": 2, "greedy_columns": 64},
    "laptop": {
        "layers": [[128, 128], [512, 128], [128, 512]],
        "bits": [4, 3, 2],
        "draws": 3,
        "repeats": 3,
        "greedy_columns": 128,
    },
    "gpu": {
        "layers": [[1024, 1024], [4096, 1024], [1024, 4096]],
        "bits": [4, 3, 2],
        "draws": 3,
        "repeats": 5,
        "greedy_columns": 256,
    },
}
Method = Callable[[Tensor, Tensor, int], Tensor | QuantizedWeight]
METHODS: dict[str, Method] = {
    "rtn": lambda weight, hessian, bits: rtn_quantize(weight, bits),
    "rtn-mse": lambda weight, hessian, bits: rtn_quantize(weight, bits, mse=True),
    "gptq": gptq_quantize,
    "gptq-act-order": partial(gptq_quantize, act_order=True),
    "gptq-mse": partial(gptq_quantize, mse=True),
    "obq": obq_quantize,
}


def benchmark(
    run: Run,
    *,
    method: str | None = None,
    layers: Sequence[Sequence[int]],
    bits: Sequence[int],
    draws: int,
    repeats: int,
    greedy_columns: int,
) -> None:
    """Error of every method on every layer, bit width and draw; time on the first draw.

    Args:
        method: a method of your own as ``package.module:function``, measured beside the others.
        greedy_columns: OBQ costs rows * columns^3, so it takes part up to this many columns.
    """
    methods = METHODS | ({method: named(method)} if method else {})
    for rows, columns in run.track(layers, "layers"):
        problem = f"{rows}x{columns}"
        entrants = {name: f for name, f in methods.items() if name != "obq" or columns <= greedy_columns}
        if len(entrants) < len(methods):
            run.note(f"obq sits out {problem}: more than {greedy_columns} columns")
        for b in bits:
            for draw in range(draws):
                weight, hessian = layer(rows, columns, run.device, seed=draw)
                for name, quantize in entrants.items():
                    values = quantized_values(quantize, weight, hessian, b)
                    lost = (weight - values).double()
                    energy = (weight.double() @ hessian.double() * weight.double()).sum()
                    record = partial(run.record, method=name, problem=problem, seed=draw, step=b)
                    record("output_error", (lost @ hessian.double() * lost).sum() / energy)
                    record("distinct_values", max(len(row.unique()) for row in values))
            weight, hessian = layer(rows, columns, run.device, seed=0)
            calls = {name: partial(f, weight, hessian, b) for name, f in entrants.items()}
            for row in interleaved(calls, repeats=repeats).itertuples():
                run.record("seconds", row.seconds, method=row.name, problem=problem, seed=row.repeat, step=b)


def layer(rows: int, columns: int, device: str, seed: int) -> tuple[Tensor, Tensor]:
    """A Gaussian weight and the Hessian of inputs whose neighbours are correlated (autoregressive, 0.9), with
    variances that fall by a factor of 100 from the first to the last."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=g)
    place = torch.arange(columns)
    covariance = 0.9 ** (place[:, None] - place).abs().double()
    spread = torch.logspace(0, -1, columns, dtype=torch.float64)[torch.randperm(columns, generator=g)]
    return weight.to(device), (2 * spread[:, None] * covariance * spread).float().to(device)


def quantized_values(quantize: Method, weight: Tensor, hessian: Tensor, bits: int) -> Tensor:
    """The values ``[rows, columns]`` a method stands for; a ValueError when they do not fit the protocol."""
    answer = quantize(weight, hessian, bits)
    values = answer.dequantize() if isinstance(answer, QuantizedWeight) else torch.as_tensor(answer)
    if values.shape != weight.shape:
        raise ValueError(f"a method must return the weight's shape {tuple(weight.shape)}, got {tuple(values.shape)}")
    return values.to(weight)


def named(method: str) -> Method:
    """The function that ``package.module:function`` names."""
    module, _, name = method.partition(":")
    if not name:
        raise ValueError(f"name your method as package.module:function, got {method!r}")
    return getattr(import_module(module), name)
