"""Next characters: a text, and a small transformer for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from secondlook.problems.datasets import Corpus
from secondlook.problems.models import CharGPT
from secondlook.problems.zoo.char_gpt import random_windows, windows


@dataclass(frozen=True)
class LanguageProblem:
    """A text, and the size and batches of a network for it; its loss is `zoo.char_gpt.next_character_loss`."""

    text: Corpus
    size: dict[str, int]  # width, depth, heads, context
    batch_size: int
    device: str

    def model(self, generator: torch.Generator) -> CharGPT:
        """The network, its weights drawn on the CPU, on the device."""
        return CharGPT(len(self.text.vocab), **self.size, generator=generator).to(self.device)

    def batches(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Endless batches of windows `[batch_size, context + 1]` of the training text."""
        return random_windows(self.text.train.to(self.device), self.size["context"], self.batch_size, generator)

    def held_out(self, part: str, count: int | None = 128) -> Tensor:
        """Up to `count` windows spread over a part of the text, or all of it."""
        all_of_them = windows(getattr(self.text, part), self.size["context"])
        return all_of_them[:: math.ceil(len(all_of_them) / (count or len(all_of_them)))].to(self.device)
