"""Denoisers conditioned on lambda = log(alpha / sigma): a residual MLP for small images, a U-Net for CIFAR-size ones.

Both predict v = alpha eps - sigma x0 under the variance-preserving convention (alpha^2 = sigmoid(2 lambda),
Salimans & Ho 2022) and return the noise eps = sigma x + alpha v: at high noise eps is then nearly x for free.
Smooth activations only, so that forward-mode derivatives in x and in lambda exist.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from secondlook.problems.models.initial import initialised


class NoiseEmbedding(nn.Module):
    """lambda [N] -> [N, width]: cosines over the range [-span, span] and two dense layers."""

    def __init__(self, width: int, span: float = 7.0, frequencies: int = 16) -> None:
        super().__init__()
        self.span, self.count = span, frequencies
        self.net = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, lam: Tensor) -> Tensor:
        waves = math.pi / (2 * self.span) * torch.arange(1, self.count + 1, dtype=lam.dtype, device=lam.device)
        return self.net(torch.cos((lam[:, None] + self.span) * waves))


class Denoiser(nn.Module):
    """eps(x [N, *shape], lambda [N] or 0-d) -> [N, *shape], around a network `velocity(x, lambda)`."""

    def velocity(self, x: Tensor, lam: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, lam: Tensor) -> Tensor:
        lam = lam.expand(len(x))
        per_image = (-1, *[1] * (x.ndim - 1))
        alpha, sigma = ((sign * 2 * lam).sigmoid().sqrt().reshape(per_image) for sign in (1, -1))
        return sigma * x + alpha * self.velocity(x, lam)


class MLPDenoiser(Denoiser):
    """Residual MLP on the flattened image; every block is shifted and scaled by the noise level."""

    def __init__(self, shape: tuple[int, ...], width: int = 256, blocks: int = 3) -> None:
        super().__init__()
        pixels = math.prod(shape)
        self.embedding = NoiseEmbedding(width)
        self.enter, self.leave = nn.Linear(pixels, width), nn.Linear(width, pixels)
        self.blocks = nn.ModuleList(_MLPBlock(width) for _ in range(blocks))

    def velocity(self, x: Tensor, lam: Tensor) -> Tensor:
        condition, h = self.embedding(lam), self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, condition)
        return self.leave(h).reshape(x.shape)


class _MLPBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 2 * width)
        self.net = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(condition).chunk(2, dim=1)
        return h + self.net(self.norm(h) * (1 + scale) + shift)


class UNetDenoiser(Denoiser):
    """A small DDPM U-Net (Ho et al. 2020): residual blocks, self-attention at the lowest resolution.

    `multipliers` gives the channels of each resolution in units of `width`; the image is halved between them.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int = 96,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
    ) -> None:
        super().__init__()
        factor = 2 ** (len(multipliers) - 1)
        if shape[1] % factor or shape[2] % factor:
            raise ValueError(f"height and width {shape[1:]} must be multiples of {factor}; use fewer multipliers")
        channels = [width * m for m in multipliers]
        self.embedding = NoiseEmbedding(2 * width)
        self.enter = nn.Conv2d(shape[0], channels[0], 3, padding=1)
        self.down, self.shrink, skips, current = nn.ModuleList(), nn.ModuleList(), [channels[0]], channels[0]
        for level, wide in enumerate(channels):
            for _ in range(blocks):
                self.down.append(_ConvBlock(current, wide, 2 * width))
                current = wide
                skips.append(current)
            if level < len(channels) - 1:
                self.shrink.append(nn.Conv2d(current, current, 3, stride=2, padding=1))
                skips.append(current)
        self.middle = nn.ModuleList(
            [_ConvBlock(current, current, 2 * width), _Attention(current), _ConvBlock(current, current, 2 * width)]
        )
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, wide in reversed(list(enumerate(channels))):
            for _ in range(blocks + 1):
                self.up.append(_ConvBlock(current + skips.pop(), wide, 2 * width))
                current = wide
            if level > 0:
                self.grow.append(nn.Conv2d(current, current, 3, padding=1))
        self.leave = nn.Sequential(_norm(current), nn.SiLU(), nn.Conv2d(current, shape[0], 3, padding=1))
        self.count = blocks

    def velocity(self, x: Tensor, lam: Tensor) -> Tensor:
        condition, h = self.embedding(lam), self.enter(x)
        skips = [h]
        for i, block in enumerate(self.down, start=1):
            h = block(h, condition)
            skips.append(h)
            if i % self.count == 0 and i < len(self.down):
                h = self.shrink[i // self.count - 1](h)
                skips.append(h)
        first, attention, last = self.middle
        h = last(attention(first(h, condition)), condition)
        for i, block in enumerate(self.up, start=1):
            h = block(torch.cat([h, skips.pop()], dim=1), condition)
            if i % (self.count + 1) == 0 and i < len(self.up):
                h = self.grow[i // (self.count + 1) - 1](interpolate(h, scale_factor=2, mode="nearest"))
        return self.leave(h)


class _ConvBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(inputs), _norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.modulate = nn.Linear(condition, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(condition)[..., None, None].chunk(2, dim=1)
        h = self.conv1(silu(self.norm1(x)))
        return self.skip(x) + self.conv2(silu(self.norm2(h) * (1 + scale) + shift))


class _Attention(nn.Module):
    """Single-head self-attention over positions, spelled out because the fused kernel lacks forward-mode AD."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
        return x + self.out((v @ weights.transpose(1, 2)).reshape(x.shape))


def denoiser(
    shape: tuple[int, ...],
    kind: str = "mlp",
    *,
    generator: torch.Generator | None = None,
    **sizes: int | tuple[int, ...],
) -> Denoiser:
    """A freshly initialised denoiser for images of `shape`; `kind` is "mlp" or "unet", `sizes` its keywords.

    The output layer starts at zero, so that the untrained model predicts eps = sigma x.
    """
    kinds: dict[str, type[Denoiser]] = {"mlp": MLPDenoiser, "unet": UNetDenoiser}
    if kind not in kinds:
        raise ValueError(f"kind must be one of {sorted(kinds)}, got {kind!r}")
    model = initialised(lambda: kinds[kind](tuple(shape), **sizes), generator)
    last = model.leave if kind == "mlp" else model.leave[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return model


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 16), channels)
