"""Next characters of English text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from secondlook.problems import datasets
from secondlook.problems.models import CharGPT
from secondlook.problems.models.initial import uniform
from secondlook.problems.tasks import Task
from secondlook.problems.training import cross_entropy


def _windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets [B, context] that begin at ``starts``; targets are one character on."""
    rows = text[starts[:, None] + torch.arange(context + 1, device=text.device)]
    return rows[:, :-1], rows[:, 1:]


def _task(
    corpus: str, device: str, context: int, batch_size: int, model: Callable[[int, torch.Generator], nn.Module]
) -> Task:
    texts = datasets.corpus(corpus)
    train, val = texts.train.to(device), texts.val.to(device)
    held_out = _windows(val, torch.arange(0, len(val) - context - 1, context, device=device)[:64], context)

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            starts = torch.randint(len(train) - context - 1, (batch_size,), generator=generator, device=device)
            yield _windows(train, starts, context)

    @torch.no_grad()
    def validate(network: nn.Module) -> Tensor:
        return cross_entropy(network, held_out)

    return Task(lambda generator: model(len(texts.vocab), generator), batches, cross_entropy, validate)


def transformer(device: str) -> Task:
    """A causal transformer of one block, width 32, on CPython's reference."""
    return _task("pydoc", device, 32, 16, lambda v, g: CharGPT(v, width=32, depth=1, heads=2, context=32, generator=g))


def large_transformer(device: str) -> Task:
    """A causal transformer of four blocks, width 128, on Shakespeare."""
    return _task(
        "tinyshakespeare",
        device,
        128,
        64,
        lambda v, g: CharGPT(v, width=128, depth=4, heads=4, context=128, generator=g),
    )


class CharLSTM(nn.Module):
    """Scores [B, T, vocabulary] of the next character, from one LSTM layer over embeddings."""

    def __init__(self, vocabulary: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.token = nn.Embedding(vocabulary, width)
            self.recurrent = nn.LSTM(width, width, batch_first=True)
            self.head = nn.Linear(width, vocabulary)
        with torch.no_grad():
            self.token.weight.normal_(0, 1, generator=generator)
            for weight in self.recurrent.parameters():
                weight.uniform_(-(width**-0.5), width**-0.5, generator=generator)
            uniform(self.head, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.recurrent(self.token(tokens))[0])


def lstm(device: str) -> Task:
    """An LSTM of 32 units on CPython's reference."""
    return _task("pydoc", device, 16, 16, lambda v, g: CharLSTM(v, 32, g))
