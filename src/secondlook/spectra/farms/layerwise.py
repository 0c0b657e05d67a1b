"""What exponents are used for: learning rates (TempBalance) and sparsities (AlphaPruning), layer by layer."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.spectra.farms.method import Layer, farms_alpha

Metric = Callable[[nn.Module], float]
DENSEST = 0.998  # share of a layer that is pruned where more than all of it was asked for


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Linear and convolutional layers by name, in the model's order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Layer)}


class TempBalance:
    """Learning rates by layer: a linear map of the exponents from their range onto [low, high] times the global rate.

    Build the optimizer from `param_groups()` and call `step(optimizer, base_lr)` once an epoch. Batch norm follows the
    layer before it. Layers without an exponent, and all other parameters, keep the global rate.

    Args:
        metric: exponent of a layer, `farms_alpha` or `raw_alpha` (or a partial of either).
        low, high: rates at the smallest and the largest exponent, in units of the global rate.
        skip_first, skip_last: leave the first or the last layer out of the map.
    """

    def __init__(
        self,
        model: nn.Module,
        metric: Metric = farms_alpha,
        low: float = 0.5,
        high: float = 1.5,
        skip_first: bool = False,
        skip_last: bool = False,
    ) -> None:
        if not 0 < low <= high:
            raise ValueError(f"rates need 0 < low <= high, got {low} and {high}")
        self.model, self.metric, self.low, self.high = model, metric, low, high
        names = list(layers_of(model))
        self.names = names[int(skip_first) : len(names) - int(skip_last)]
        self.owner: dict[Tensor, str] = {}
        last = ""
        for name, module in model.named_modules():
            last = name if isinstance(module, Layer) else last
            if isinstance(module, Layer | nn.modules.batchnorm._BatchNorm):
                self.owner |= dict.fromkeys(module.parameters(recurse=False), last)

    def param_groups(self) -> list[dict[str, Any]]:
        """One group for every layer and its batch norm, and one for the rest."""
        groups: dict[str | None, list[Tensor]] = {}
        for p in self.model.parameters():
            groups.setdefault(self.owner.get(p), []).append(p)
        return [{"params": params} for params in groups.values()]

    def ratios(self) -> dict[str, float]:
        """Rates of the layers in units of the global rate."""
        layers = layers_of(self.model)
        alphas = {name: self.metric(layers[name]) for name in self.names}
        alphas = {name: alpha for name, alpha in alphas.items() if math.isfinite(alpha)}
        shares = _shares(list(alphas.values()))
        return {n: self.low + (self.high - self.low) * s for n, s in zip(alphas, shares, strict=True)}

    def step(self, optimizer: torch.optim.Optimizer, base_lr: float) -> None:
        """Set the rate of every group by the exponents of now."""
        ratios = self.ratios()
        for group in optimizer.param_groups:
            owners = {self.owner.get(p) for p in group["params"]}
            if len(owners) != 1:
                raise ValueError("a group mixes layers: build the optimizer from TempBalance.param_groups()")
            group["lr"] = base_lr * ratios.get(owners.pop(), 1.0)


def _shares(alphas: Sequence[float]) -> list[float]:
    """Places of the exponents between the smallest (0) and the largest (1); the middle where all are equal."""
    low, high = min(alphas, default=0.0), max(alphas, default=0.0)
    return [(a - low) / (high - low) if high > low else 0.5 for a in alphas]


def alpha_pruning_ratios(
    model: nn.Module, sparsity: float, eps: float = 0.3, metric: Metric = farms_alpha, keep: Collection[str] = ()
) -> dict[str, float]:
    """Share of weights to prune in every layer, by name: the larger the exponent, the more, `sparsity` on average.

    Layers named in `keep` are left alone; in the released code only the blocks of a language model are pruned.

    With s the place of the exponent between the smallest and the largest and n the number of weights,
    r = 1 - eps + 2 eps s and the share is r `sparsity` sum(n) / sum(n r), cut to 0.998 where it exceeds 1 (the mean
    then falls short, as in the released code). A layer without an exponent has r = 1.
    """
    if not (0 <= sparsity < 1 and 0 <= eps < 1):
        raise ValueError(f"sparsity and eps must lie in [0, 1), got {sparsity} and {eps}")
    layers = {name: layer for name, layer in layers_of(model).items() if name not in keep}
    alphas = {name: metric(layer) for name, layer in layers.items()}
    found = {name: alpha for name, alpha in alphas.items() if math.isfinite(alpha)}
    places = dict(zip(found, _shares(list(found.values())), strict=True))
    r = {name: 1 - eps + 2 * eps * places.get(name, 0.5) for name in layers}
    n = {name: layer.weight.numel() for name, layer in layers.items()}
    scale = sparsity * sum(n.values()) / sum(n[name] * r[name] for name in layers)
    return {name: r[name] * scale if r[name] * scale <= 1 else DENSEST for name in layers}


@torch.no_grad()
def prune_by_magnitude(model: nn.Module, ratios: dict[str, float]) -> None:
    """Set the smallest weights of every layer to zero, `int(ratio * n)` of them; biases stay."""
    layers = layers_of(model)
    for name, ratio in ratios.items():
        weight = layers[name].weight
        smallest = weight.abs().flatten().argsort(stable=True)[: int(ratio * weight.numel())]
        weight.view(-1)[smallest] = 0
