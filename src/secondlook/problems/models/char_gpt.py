"""A small GPT over characters: pre-norm blocks, learned positions, every block weight in an ``nn.Linear``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; four linear layers without biases."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class CharGPT(nn.Module):
    """Next-character logits ``[batch, time, vocabulary]`` for tokens ``[batch, time]``, ``time <= context``."""

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        context: int = 64,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads; choose a multiple")
        self.context = context
        with torch.random.fork_rng(devices=[]):  # PyTorch's own initialisation draws from the global stream
            self.token = nn.Embedding(vocabulary, width)
            self.position = nn.Embedding(context, width)
            self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, vocabulary, bias=False)
        self.reset_parameters(generator or torch.Generator().manual_seed(0))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Normal draws: embeddings of size 0.02; layers by fan-in, those that write to the stream scaled down."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0.02, generator=generator)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0, module.in_features**-0.5, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for block in self.blocks:
            for layer in (block.out, block.down):
                layer.weight.mul_((2 * len(self.blocks)) ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        time = tokens.shape[1]
        if time > self.context:
            raise ValueError(f"got {time} characters, the context holds {self.context}; cut the input")
        x = self.token(tokens) + self.position.weight[:time]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
