"""A heart-like signal whose rate or shape changes at known times."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAMPLES_PER_SECOND = 100

# Waves of a beat: amplitude, place from the main peak and width, both in s.
NORMAL = ((0.15, -0.18, 0.025), (-0.1, -0.035, 0.01), (1.0, 0.0, 0.014), (-0.2, 0.035, 0.012), (0.3, 0.24, 0.05))
OTHER = ((0.15, -0.18, 0.025), (-0.1, -0.07, 0.02), (0.8, 0.0, 0.035), (-0.35, 0.07, 0.025), (-0.3, 0.26, 0.05))
KINDS = {  # the two regimes that take turns: beats a second, waves
    "rate": ((1.0, NORMAL), (1.5, NORMAL)),
    "shape": ((1.2, NORMAL), (1.2, OTHER)),
}


def heartbeat(
    kind: str, changes: int, seconds: float, noise: float, generator: torch.Generator
) -> tuple[Tensor, list[float]]:
    """A signal [n] with white noise and a wandering baseline, and the times of its changes in s.

    The regimes last equally long, give or take a quarter; the time between beats varies by 3%.
    """
    length = seconds / (changes + 1)
    jitter = (torch.rand(changes, generator=generator, dtype=torch.float64) - 0.5) / 2
    ends = [length * (i + 1 + float(j)) for i, j in enumerate(jitter)]
    t = torch.arange(round(seconds * SAMPLES_PER_SECOND), dtype=torch.float64) / SAMPLES_PER_SECOND
    signal = noise * torch.randn(len(t), generator=generator, dtype=torch.float64)
    wander, beat = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    signal += 0.05 * torch.sin(2 * math.pi * (0.25 * t + wander))
    while beat < seconds:
        rate, waves = KINDS[kind][sum(beat >= end for end in ends) % 2]
        for amplitude, place, width in waves:
            signal += amplitude * torch.exp(-0.5 * ((t - beat - place) / width) ** 2)
        beat += (1 + 0.03 * float(torch.randn((), generator=generator, dtype=torch.float64))) / rate
    return signal, ends
