"""Images read pixel by pixel, a small stack of state-space layers that classifies them, and its training."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondlook.problems.datasets import Dataset, Split
from secondlook.problems.images import ImageProblem
from secondlook.problems.models.initial import initialised
from secondlook.problems.training import History, cosine, cross_entropy, fit, minibatches

SSM = ("log_dt", "log_A_real", "A_imag", ".B")
"""Parameters of a layer's dynamics: they get a learning rate of their own and no weight decay."""


def sequences(name: str, side: int, device: str) -> Dataset:
    """Images as sequences of pixels, row by row: x `[N, side^2, channels]`, each channel standardised.

    Images are resized to `side` pixels a side where they have another size.
    """

    def unrolled(split: Split) -> Split:
        x = split.x
        if x.shape[-1] != side:
            x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
        return Split(x.flatten(2).mT.contiguous(), split.y)

    return ImageProblem(name, nn.Module).load(device).map(unrolled)


class SequenceClassifier(nn.Module):
    """Encoder, residual layers with LayerNorm after each sum, mean over time, decoder; `[B, L, inputs]` to scores.

    `layers` map `[B, H, L]` to itself; encoder and decoder are drawn from `generator`.
    """

    def __init__(self, inputs: int, classes: int, layers: list[nn.Module], d_model: int, generator: torch.Generator):
        super().__init__()
        self.encoder, self.decoder = initialised(
            lambda: nn.ModuleList([nn.Linear(inputs, d_model), nn.Linear(d_model, classes)]), generator
        )
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(x + layer(x.mT).mT)
        return self.decoder(x.mean(1))


def classifier(
    data: Dataset, layer: Callable[[torch.Generator], nn.Module], depth: int, d_model: int, generator: torch.Generator
) -> SequenceClassifier:
    """A network for the sequences of `data`, its `depth` layers made by `layer(generator)`, on the data's device."""
    layers = [layer(generator) for _ in range(depth)]
    net = SequenceClassifier(data.train.x.shape[-1], data.classes, layers, d_model, generator)
    return net.to(data.train.x.device)


def train(
    net: nn.Module,
    data: Dataset,
    generator: torch.Generator,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    ssm_lr: float = 1e-3,
    weight_decay: float = 0.01,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> History:
    """AdamW with a linear warm-up over a tenth of the steps and a cosine after it; a row of the history an epoch."""
    slow = [p for name, p in net.named_parameters() if name.endswith(SSM)]
    fast = [p for name, p in net.named_parameters() if not name.endswith(SSM)]
    optimizer = torch.optim.AdamW(
        [{"params": slow, "lr": min(ssm_lr, lr), "weight_decay": 0.0}, {"params": fast}],
        lr=lr,
        weight_decay=weight_decay,
        fused=True,
    )
    batches = minibatches(*data.train, min(batch_size, len(data.train.x)), generator)
    steps = epochs * batches.steps_per_epoch
    schedule = cosine(steps, warmup=steps // 10)
    every = batches.steps_per_epoch
    return fit(net, optimizer, batches, cross_entropy, steps=steps, schedule=schedule, evaluate=evaluate, every=every)
