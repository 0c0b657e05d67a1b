"""Reference model `denoiser`: a noise predictor trained on real images, for samplers.

Digits (8 by 8) with a residual MLP on a laptop; CIFAR-10 with a small U-Net on a GPU. Pixels are scaled to [-1, 1];
the loss is the plain noise-prediction error at times drawn uniformly from the linear variance-preserving schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from secondlook.problems import datasets
from secondlook.problems.models.denoiser import denoiser
from secondlook.problems.training import cosine, fit, minibatches

_MLP = {
    "data": "digits",
    "shape": [1, 8, 8],
    "kind": "mlp",
    "sizes": {"width": 192, "blocks": 3},
    "batch_size": 128,
    "lr": 2e-3,
    "weight_decay": 0.01,
}
_UNET = {
    "data": "cifar10-jpeg",
    "shape": [3, 32, 32],
    "kind": "unet",
    "sizes": {"width": 96, "multipliers": [1, 2, 2], "blocks": 2},
    "batch_size": 256,
    "lr": 4e-4,
    "weight_decay": 1e-4,
}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": _MLP | {"steps": 150},
    "laptop": _MLP | {"steps": 4000},
    "gpu": _UNET | {"steps": 20_000},
}
CHECK = {"sizes": {"width": 4, "multipliers": [1, 2], "blocks": 1}, "batch_size": 4, "steps": 2}
BETA_MIN, BETA_MAX, T_END = 0.1, 20.0, 1e-3


def build(settings: dict[str, Any]) -> nn.Module:
    """The untrained network of these settings."""
    return denoiser(
        tuple(settings["shape"]),
        settings["kind"],
        generator=torch.Generator().manual_seed(settings.get("init_seed", 0)),
        **settings["sizes"],
    )


def train(
    settings: dict[str, Any], seed: int, device: str, track: Callable[..., Iterable[Any]] | None = None
) -> tuple[nn.Module, dict[str, float]]:
    """AdamW with a cosine schedule from seed; metrics: noise-prediction errors on training and validation images."""
    model = build(settings | {"init_seed": seed}).to(device)
    data = datasets.load(settings["data"]).to(device)
    generator = torch.Generator(device).manual_seed(seed)
    mirror = _mirrored if settings["data"] != "digits" else None  # a mirrored digit is not a digit
    batches = minibatches(data.train.x * 2 - 1, data.train.y, settings["batch_size"], generator, mirror)
    steps = settings["steps"]
    fit(
        model,
        torch.optim.AdamW(model.parameters(), settings["lr"], weight_decay=settings["weight_decay"], fused=True),
        batches,
        lambda model, batch: noise_error(model, batch[0], generator),
        steps=steps,
        schedule=cosine(steps, warmup=steps // 20),
        track=track,
    )
    model.eval()
    return model, {
        f"{name}_noise_error": _mean_error(model, split.x * 2 - 1, seed)
        for name, split in (("train", data.train), ("val", data.val))
    }


def _mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every image mirrored with probability one half."""
    flip = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
    return torch.where(flip, x.flip(-1), x)


def noise_error(model: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
    """Mean square error of the predicted noise at random times, one draw for each image of x0 [N, *shape]."""
    t = T_END + (1 - T_END) * torch.rand(len(x0), generator=generator, device=x0.device)
    log_alpha = -t * (BETA_MIN / 2 + t * (BETA_MAX - BETA_MIN) / 4)
    sigma = (-torch.expm1(2 * log_alpha)).sqrt()
    per_image = (-1, *[1] * (x0.ndim - 1))
    noise = torch.randn(x0.shape, generator=generator, device=x0.device)
    x = log_alpha.exp().reshape(per_image) * x0 + sigma.reshape(per_image) * noise
    return mse_loss(model(x, log_alpha - sigma.log()), noise)


@torch.no_grad()
def _mean_error(model: nn.Module, x0: Tensor, seed: int, limit: int = 2048, repeats: int = 4) -> float:
    generator = torch.Generator(x0.device).manual_seed(seed + 1)
    draws = [noise_error(model, part, generator) for part in x0[:limit].split(512) for _ in range(repeats)]
    return torch.stack(draws).mean().item()
