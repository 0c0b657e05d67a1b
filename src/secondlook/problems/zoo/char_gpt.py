"""Reference model `char-gpt`: a character-level GPT trained on real English text, for compression.

On a laptop the text is Python's own language reference, which ships with the interpreter; on a GPU it is tiny
Shakespeare with a network of the size that is usual there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from secondlook.problems import datasets
from secondlook.problems.models.char_gpt import CharGPT
from secondlook.problems.training import cosine, fit

_SMALL = {"corpus": "pydoc", "width": 64, "depth": 2, "heads": 4, "context": 64, "batch_size": 16, "lr": 1e-2}
_LARGE = {"corpus": "tinyshakespeare", "width": 512, "depth": 6, "heads": 8, "context": 256, "batch_size": 32}
SCALES = {
    "smoke": _SMALL | {"steps": 60},
    "laptop": _SMALL | {"steps": 1800},
    "gpu": _LARGE | {"steps": 1200, "lr": 1e-3},
}
CHECK = {"width": 16, "depth": 2, "heads": 2, "context": 16, "batch_size": 2, "steps": 2}


def build(settings: dict) -> nn.Module:
    """The untrained network of these settings."""
    return CharGPT(
        len(datasets.corpus(settings["corpus"]).vocab),
        **{size: settings[size] for size in ("width", "depth", "heads", "context")},
        generator=torch.Generator().manual_seed(settings.get("init_seed", 0)),
    )


def train(settings: dict, seed: int, device: str, track=None) -> tuple[nn.Module, dict[str, float]]:
    """Train from seed with AdamW and one cycle of the learning rate; returns the model and its perplexities."""
    model = build(settings | {"init_seed": seed}).to(device)
    text = datasets.corpus(settings["corpus"])
    generator = torch.Generator(device).manual_seed(seed)
    batches = random_windows(text.train.to(device), settings["context"], settings["batch_size"], generator)
    optimizer = torch.optim.AdamW(model.parameters(), settings["lr"], (0.9, 0.95), weight_decay=0.1, fused=True)
    steps = settings["steps"]
    schedule = cosine(steps, warmup=steps // 10)
    fit(model, optimizer, batches, next_character_loss, steps=steps, schedule=schedule, track=track)
    model.eval()
    parts = {"train": text.train[: len(text.val)], "val": text.val}
    return model, {
        f"{name}_perplexity": perplexity(model, windows(part, settings["context"]).to(device))
        for name, part in parts.items()
    }


def windows(tokens: Tensor, context: int) -> Tensor:
    """The text cut into windows ``[n, context + 1]``; neighbours share one character, so each is a target once."""
    return tokens.unfold(0, context + 1, context)


def random_windows(tokens: Tensor, context: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches ``[batch_size, context + 1]`` of windows that start anywhere in the text."""
    reach = torch.arange(context + 1, device=tokens.device)
    last = len(tokens) - context
    while True:
        start = torch.randint(last, (batch_size, 1), generator=generator, device=tokens.device)
        yield tokens[start + reach]


def next_character_loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean cross-entropy in nats of every next character in windows ``[batch, context + 1]``."""
    return cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: nn.Module, text: Tensor, batch_size: int = 128) -> float:
    """exp of the mean cross-entropy over windows ``[n, context + 1]`` of text."""
    nats = torch.stack([next_character_loss(model, part) * len(part) for part in text.split(batch_size)])
    return math.exp(nats.sum().item() / len(text))
