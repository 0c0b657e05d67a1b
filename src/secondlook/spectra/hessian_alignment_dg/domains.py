"""Domains whose colour goes with the label, differently strongly in each: bits with noise, and coloured digits."""

import torch
from torch import Tensor

from secondlook.problems import datasets

__all__ = ["colored_bits", "colored_environment", "make"]

Domain = tuple[Tensor, Tensor]  # inputs [N, D], labels [N] in {0, 1}


def colored_environment(
    images: Tensor, labels: Tensor, e: float | None, label_noise: float = 0.25, seed: int = 0
) -> Domain:
    """Coloured digits: inputs `[N, 2, 14, 14]` and binary labels `[N]` from images `[N, 28, 28]` and digits `[N]`.

    The label is one for digits below 5, flipped with probability `label_noise`; the colour is the label flipped with
    probability `e`, and the channel that is not the colour is zero. `e=None` leaves both channels (grey).
    """
    if images.ndim != 3 or len(images) != len(labels):
        raise ValueError(f"need images [N, H, W] and N digits, got {tuple(images.shape)} and {len(labels)} digits")
    if e is not None and not 0 <= e <= 1:
        raise ValueError(f"e is a probability or None, got {e}")
    generator = torch.Generator().manual_seed(seed)
    flips = torch.rand(2, len(labels), generator=generator).to(labels.device)
    y = (labels < 5) ^ (flips[0] < label_noise)
    x = images[:, None, ::2, ::2].repeat(1, 2, 1, 1)
    if e is not None:
        colour = y ^ (flips[1] < e)
        x[torch.arange(len(x), device=x.device), (~colour).long()] = 0
    return x, y.float()


def colored_bits(
    n: int,
    e: float | None,
    *,
    share: float = 0.5,
    label_noise: float = 0.25,
    copies: int = 8,
    generator: torch.Generator,
) -> Domain:
    """The same story with bits: `copies` weak measurements of a causal bit and as many clear ones of the colour.

    The bit is one with probability `share`; the label is the bit flipped with probability `label_noise`, the colour
    the label flipped with probability `e` (None: no colour). Inputs `[n, 2 copies]`.
    """
    draws = torch.rand(3, n, generator=generator)
    bit = draws[0] < share
    y = bit ^ (draws[1] < label_noise)
    colour = (2.0 * (y ^ (draws[2] < e)) - 1) if e is not None else torch.zeros(n)
    causal = 0.8 * (2.0 * bit - 1)
    noise = torch.randn(n, 2 * copies, generator=generator)
    x = torch.cat([causal[:, None] + noise[:, :copies], colour[:, None] + 0.3 * noise[:, copies:]], 1)
    return x, y.float()


def make(source: str, shift: str, stream: int, points: int, device: str) -> dict[str, Domain]:
    """Two training domains with e = 0.2 and 0.1, a validation domain with 0.5, the test with 0.9, and a grey test.

    With `shift="imbalanced"` the label's cause is skewed too, 97% in the first training domain and 3% in the second.
    """
    shares = {"balanced": (0.5, 0.5), "imbalanced": (0.97, 0.03)}[shift]
    if source == "bits":
        generator = torch.Generator().manual_seed(stream)
        plan = {"first": (0.2, shares[0]), "second": (0.1, shares[1]), "val": (0.5, 0.5), "test": (0.9, 0.5)}
        made = {k: colored_bits(points, e, share=s, generator=generator) for k, (e, s) in plan.items()}
        made["grey"] = colored_bits(points, None, generator=generator)
    else:
        made = _digits(source, shares, stream)
    return {name: (x.flatten(1).to(device), y.to(device)) for name, (x, y) in made.items()}


def _digits(source: str, shares: tuple[float, float], stream: int) -> dict[str, Domain]:
    """Training and validation images of a data set in a new order: five sixths train, the rest test."""
    data = datasets.load(source)
    x, y = torch.cat([data.train.x, data.val.x])[:, 0], torch.cat([data.train.y, data.val.y])
    held_out = len(y) // 6
    train = torch.randperm(len(y) - held_out, generator=torch.Generator().manual_seed(stream))
    last = torch.arange(len(y) - held_out, len(y))
    if shares[0] == shares[1]:
        first, second = train[::2], train[1::2]
    else:
        low, high = (train[(y[train] < 5) == small] for small in (True, False))
        cuts = round(shares[0] * len(low)), round((1 - shares[0]) * len(high))
        first, second = torch.cat([low[: cuts[0]], high[: cuts[1]]]), torch.cat([low[cuts[0] :], high[cuts[1] :]])
    plan = {"first": (first, 0.2), "second": (second, 0.1), "test": (last, 0.9), "grey": (last, None)}
    made = {
        name: colored_environment(x[rows], y[rows], e, seed=10 * stream + i)
        for i, (name, (rows, e)) in enumerate(plan.items())
    }
    return made | {"val": colored_environment(data.test.x[:, 0], data.test.y, 0.5, seed=10 * stream + 9)}
