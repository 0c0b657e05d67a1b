"""Fréchet distance between two sets of images in a classifier's features (after Heusel et al. 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from secondlook.problems.augment import crop_and_flip
from secondlook.problems.datasets import Dataset
from secondlook.problems.models.convnets import digits_cnn
from secondlook.problems.models.resnet import resnet20
from secondlook.problems.training import accuracy, cosine, cross_entropy, fit, minibatches

NETWORKS = {"digits-cnn": digits_cnn, "resnet20": resnet20}


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) for features a [N, d], b [M, d], in float64.

    Infinite where a feature is not finite: the samples have diverged.
    """
    if len(a) < 2 or len(b) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"need two sets of two or more features of one length, got {tuple(a.shape)}, {tuple(b.shape)}")
    if not (a.isfinite().all() and b.isfinite().all()):
        return math.inf
    a, b = a.double(), b.double()
    A, B = (torch.atleast_2d(x.T.cov()) for x in (a, b))
    values, vectors = torch.linalg.eigh(A)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ B @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + A.trace() + B.trace() - 2 * overlap).item()


class Features:
    """What the last linear layer of a classifier sees, for images in [-1, 1]: [N, *shape] -> [N, d]."""

    def __init__(self, network: str, data: Dataset, steps: int, device: str, seed: int = 0) -> None:
        """Train `network` ("digits-cnn" or "resnet20") on the data set's training images for `steps` steps."""
        if network not in NETWORKS:
            raise ValueError(f"network must be one of {sorted(NETWORKS)}, got {network!r}")
        generator = torch.Generator().manual_seed(seed)
        data = data.to(device)
        self.model = NETWORKS[network](generator=generator).to(device)
        # Every batch is augmented: draws from the host would make every step wait for the device.
        draws = generator if device == "cpu" else torch.Generator(device).manual_seed(seed)
        augment = crop_and_flip if network == "resnet20" else None
        fit(
            self.model,
            torch.optim.AdamW(self.model.parameters(), lr=3e-3),
            minibatches(data.train.x * 2 - 1, data.train.y, min(128, len(data.train.y)), draws, augment),
            cross_entropy,
            steps=steps,
            schedule=cosine(steps, warmup=steps // 20),
        )
        self.model.eval()
        self.accuracy = accuracy(self.model, data.test.x * 2 - 1, data.test.y)
        self._last = [m for m in self.model.modules() if isinstance(m, nn.Linear)][-1]

    @torch.no_grad()
    def __call__(self, images: Tensor, batch_size: int = 1024) -> Tensor:
        seen: list[Tensor] = []
        hook = self._last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            for part in images.clamp(-1, 1).split(batch_size):
                self.model(part)
        finally:
            hook.remove()
        return torch.cat(seen)
