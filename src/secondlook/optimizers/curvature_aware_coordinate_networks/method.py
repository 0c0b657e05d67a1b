"""Networks from coordinates to signal values (Chng et al. 2023, arXiv:2305.08552)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondlook.optimizers.base import check_count, check_range

Activation = Literal["sine", "gauss", "relu_pe", "tanh"]


class CoordNet(nn.Module):
    """An MLP of coordinates in [-1, 1].

    Args:
        d_in: coordinates.
        d_out: values.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        activation: "sine" is sin(w0 z) with the initialisation that belongs to it, "gauss" is exp(-z^2 / 2 s^2),
            "relu_pe" a ReLU network of sin and cos of 2^j pi x, "tanh" the plain thing.
        w0: frequency of the sine.
        width: s of the Gaussian.
        frequencies: octaves of the positional encoding.
        generator: draws the weights, on the CPU.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        hidden: int = 64,
        layers: int = 3,
        activation: Activation = "sine",
        *,
        w0: float = 30.0,
        width: float = 0.1,
        frequencies: int = 6,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, value in {"d_in": d_in, "d_out": d_out, "hidden": hidden, "layers": layers}.items():
            check_count(name, value)
        check_range("w0", w0, low_open=True)
        check_range("width", width, low_open=True)
        check_count("frequencies", frequencies)
        if activation not in ("sine", "gauss", "relu_pe", "tanh"):
            raise ValueError(f"activation must be 'sine', 'gauss', 'relu_pe' or 'tanh', got {activation!r}")
        super().__init__()
        self.activation, self.w0, self.width = activation, w0, width
        octaves = 2.0 ** torch.arange(frequencies) * math.pi
        self.register_buffer("octaves", octaves if activation == "relu_pe" else None)
        first = 2 * frequencies * d_in if activation == "relu_pe" else d_in
        widths = [first, *[hidden] * layers, d_out]
        self.weights = nn.ParameterList(
            nn.Parameter(bound * (2 * torch.rand(b, a, generator=generator) - 1))
            for (a, b), bound in zip(pairwise(widths), self._bounds(widths), strict=True)
        )
        self.biases = nn.ParameterList(
            nn.Parameter((2 * torch.rand(b, generator=generator) - 1) / math.sqrt(a)) for a, b in pairwise(widths)
        )

    def _bounds(self, widths: list[int]) -> list[float]:
        """Half-widths of the uniform distributions that the weights of each layer are drawn from."""
        match self.activation:
            case "sine":  # pre-activations w0 z of unit variance from the second layer on
                return [1 / widths[0], *(math.sqrt(6 / a) / self.w0 for a in widths[1:-1])]
            case "relu_pe":
                return [math.sqrt(6 / a) for a in widths[:-1]]  # He et al.
            case _:
                return [1 / math.sqrt(a) for a in widths[:-1]]

    def forward(self, x: Tensor) -> Tensor:
        """Values [N, d_out] at coordinates [N, d_in]."""
        if self.octaves is not None:
            waves = (x.unsqueeze(-1) * self.octaves).flatten(1)
            x = torch.cat([waves.sin(), waves.cos()], 1)
        last = len(self.weights) - 1
        for i, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.linear(x, W, b)
            if i < last:
                x = self._activate(x)
        return x

    def _activate(self, z: Tensor) -> Tensor:
        match self.activation:
            case "sine":
                return (self.w0 * z).sin()
            case "gauss":
                return (z.square() * (-0.5 / self.width**2)).exp()
            case "relu_pe":
                return z.relu()
            case _:
                return z.tanh()
