"""A vision transformer and an MLP-Mixer of any size, built alike; the residual network is `problems.models.resnet`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secondlook.problems.models.initial import initialised


def hidden(width: int, inner: int) -> nn.Sequential:
    """The two-layer GELU network that both kinds of blocks are made of."""
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


class Attend(nn.Module):
    """Multi-head self-attention over [N, tokens, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MixTokens(nn.Module):
    """The Mixer's token-mixing network: over the tokens of [N, tokens, width], alike for every channel."""

    def __init__(self, tokens: int, inner: int) -> None:
        super().__init__()
        self.net = hidden(tokens, inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """`x + mix(norm(x))` over tokens, then `x + mlp(norm(x))` over channels."""

    def __init__(self, mix: nn.Module, width: int) -> None:
        super().__init__()
        self.mix_norm, self.mix = nn.LayerNorm(width), mix
        self.mlp_norm, self.mlp = nn.LayerNorm(width), hidden(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.mix_norm(x))
        return x + self.mlp(self.mlp_norm(x))


def patches(x: Tensor, side: int) -> Tensor:
    """Images [N, C, H, W] cut into squares, [N, tokens, C side side]: `F.unfold` without overlap, at half its time."""
    squares = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # [N, C, rows, side, columns, side]
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class Patches(nn.Module):
    """Images [N, 3, side, side] as a sequence of patches through blocks; the mean over patches gives the scores.

    With attention, learned positions are added; the Mixer's token network tells positions apart by itself.
    """

    def __init__(
        self, kind: str, side: int, patch: int, width: int, depth: int, heads: int, token_inner: int, classes: int
    ) -> None:
        super().__init__()
        self.patch, tokens = patch, (side // patch) ** 2
        self.embed = nn.Linear(3 * patch * patch, width)
        self.positions = nn.Parameter(torch.empty(tokens, width)) if kind == "vit" else None
        self.blocks = nn.Sequential(
            *(
                Block(Attend(width, heads) if kind == "vit" else MixTokens(tokens, token_inner), width)
                for _ in range(depth)
            )
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(patches(x, self.patch))
        x = self.blocks(x if self.positions is None else x + self.positions)
        return self.head(self.norm(x).mean(1))


def vit(
    side: int,
    patch: int,
    width: int,
    depth: int,
    heads: int = 4,
    classes: int = 10,
    generator: torch.Generator | None = None,
) -> Patches:
    """Vision transformer with pre-norm blocks and mean pooling; weights from `generator` (None: seed 0)."""
    if width % heads:
        raise ValueError(f"width {width} does not divide into {heads} heads; choose a multiple")
    return _patches("vit", side, patch, width, depth, heads, 0, classes, generator=generator)


def mixer(
    side: int,
    patch: int,
    width: int,
    depth: int,
    token_inner: int,
    classes: int = 10,
    generator: torch.Generator | None = None,
) -> Patches:
    """MLP-Mixer with `token_inner` hidden units over tokens; weights from `generator` (None: seed 0)."""
    return _patches("mixer", side, patch, width, depth, 1, token_inner, classes, generator=generator)


def _patches(kind: str, side: int, patch: int, *sizes: int, generator: torch.Generator | None) -> Patches:
    if side % patch:
        raise ValueError(f"images of side {side} do not divide into patches of {patch}; choose a divisor")
    generator = generator or torch.Generator().manual_seed(0)
    net = initialised(lambda: Patches(kind, side, patch, *sizes), generator, _by_fan_in)
    if net.positions is not None:  # half the size of the patches' own part, or so
        nn.init.normal_(net.positions, std=0.5, generator=generator)
    return net


def _by_fan_in(layer: nn.Module, generator: torch.Generator) -> None:
    """Normal weights of variance 1/fan in, biases zero."""
    layer.weight.normal_(0, layer.weight[0].numel() ** -0.5, generator=generator)
    layer.bias.zero_()
