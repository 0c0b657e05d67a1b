r"""AdaFisher: momentum over a diagonal Fisher matrix from Kronecker factors (Gomes et al. 2024, arXiv:2405.16397).

For a layer with inputs a and output gradients s, K-FAC approximates the Fisher matrix by E[s s^T] kron E[a a^T].
AdaFisher keeps the two diagonals, S and H, brings each to [0, 1], and averages them over refreshes:

    N(x) = (x - min x) / (max x - min x + 1e-6),   H_avg <- k H_avg + c N(H),   S_avg <- k S_avg + c N(S)
    F = S_avg H_avg^T + damping,   m <- beta m + (1 - beta) g,   w <- w - lr / (1 - beta^t) * m / F

Rows of F are a layer's outputs, columns its inputs and, last, its bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secondlook.curvature.kronecker import layer_inputs, layer_outputs
from secondlook.optimizers.base import check_count, check_range
from secondlook.optimizers.capture import LayerOptimizer

SUPPORTED = (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm)


def kfac_factor_diagonals(module: nn.Module, inputs: Tensor, grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonals (H, S) of the Kronecker factors of inputs and of output gradients.

    Args:
        module: a Linear, Conv2d, BatchNorm2d or LayerNorm.
        inputs: what it was given, [batch, ...].
        grad_outputs: gradient of the loss with respect to what it returned, [batch, ...].

    Returns:
        H: [in (+ 1 for the bias)]; of a convolution [K (+ 1)] with K weights an output, all divided by K once more, as
            in the released code; of a normalisation layer [2], a number for the weight and one for the bias.
        S: [out]; of a normalisation layer a number for each weight.

    Raises:
        TypeError: the module is of another kind.
    """
    batch = len(inputs)
    if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
        # One axis is summed last: channels, or whatever a LayerNorm has in their place.
        sums = inputs.transpose(0, 1).flatten(1).sum(1) / inputs[0, 0].numel() ** 2
        h = torch.stack([sums.square().sum(), sums.new_tensor(len(sums))]) / batch**2
        kept = 1 if isinstance(module, nn.BatchNorm2d) else -1
        return h, grad_outputs.transpose(kept, -1).flatten(0, -2).sum(0).square() / batch
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise TypeError(f"no factors for a {type(module).__name__}; use Linear, Conv2d, BatchNorm2d or LayerNorm")
    a, s = layer_inputs(module, inputs).flatten(0, 1), layer_outputs(module, grad_outputs).flatten(0, 1)
    if isinstance(module, nn.Linear):
        return a.square().mean(0), s.square().mean(0)
    size = module.weight[0].numel()
    squares = a.square().mean(0)  # [groups * size (+ 1)]
    weights, rest = squares[: module.groups * size], squares[module.groups * size :]
    return torch.cat([weights.view(module.groups, size).sum(0), module.groups * rest]) / size, s.square().mean(0)


def min_max(x: Tensor) -> Tensor:
    """`x` moved and scaled to [0, 1), its smallest entry to 0 (the released code's normalisation)."""
    low, high = x.aminmax()
    return torch.nan_to_num((x - low) / (high - low + 1e-6), posinf=1.0, neginf=0.0)


class AdaFisher(LayerOptimizer):
    """AdaFisher on a model's Linear, Conv2d, BatchNorm2d and LayerNorm layers; other parameters have F = 1.

    Hooks show the layers' inputs and output gradients at every `every`-th step, from the first. The loop is the usual
    one: forward, `loss.backward()` of a mean loss, `step()`. `remove()` takes the hooks off.

    Args:
        model: the model that is trained.
        lr: step size; a step is about lr / damping long, measured in gradients.
        beta: decay of the averaged gradient.
        damping: added to F (Lambda in the paper).
        gamma: sets the averages' constants: k = gamma / 10 and c = gamma / 100 in the released code, which has 0.8.
        every: steps between refreshes of the factors.
        weight_decay: L2 term added to the gradient, or decoupled and multiplied by lr ("AdaFisherW").
        ema: "code", or "printed" with k = 1 - gamma / 10 and c = 1 - gamma / 100.
        scalar: replace each layer's F by its mean, an ablation: what remains is one step size a layer.
        params: parameters of the model, or groups with options of their own; by default all that take gradients.
        maximize: ascend instead of descend.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        beta: float = 0.9,
        damping: float = 1e-3,
        gamma: float = 0.8,
        every: int = 100,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        ema: Literal["code", "printed"] = "code",
        *,
        scalar: bool = False,
        params: Any = None,
        maximize: bool = False,
    ) -> None:
        check_range("damping", damping, low_open=True)
        check_range("gamma", gamma, 0, 1, high_open=False)
        check_count("every", every)
        if ema not in ("code", "printed"):
            raise ValueError(f"ema must be 'code' or 'printed', got {ema!r}")
        self.keep, self.add = gamma / 10, gamma / 100
        if ema == "printed":
            self.keep, self.add = 1 - self.keep, 1 - self.add
        self.damping, self.every, self.decoupled, self.scalar = damping, every, decoupled, scalar
        if params is None:
            params = [p for p in model.parameters() if p.requires_grad]
        options = {"lr": lr, "beta": beta, "weight_decay": weight_decay, "maximize": maximize, "steps": 0}
        super().__init__(params, options)
        layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, SUPPORTED) and module.weight is not None
            if not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) == 1
        }
        self._watch(layers)

    def _check(self, options: dict[str, Any]) -> None:
        check_range("lr", options["lr"])
        check_range("beta", options["beta"], high=1)
        check_range("weight_decay", options["weight_decay"])

    @property
    def due(self) -> bool:
        """Whether the next step refreshes the factors."""
        return self.param_groups[0]["steps"] % self.every == 0

    def _begin(self, closure: Callable[[], Any] | None) -> tuple[Any, list[Tensor]]:
        begun = super()._begin(closure)
        if seen := self._hooks.take():
            ours = {p for group in self.param_groups for p in group["params"]}
            for layer, uses in ((self.layers[name], uses) for name, uses in seen.items()):
                for use in uses if layer.weight in ours else ():
                    self._average(layer, *kfac_factor_diagonals(layer, *use), biased=layer.bias in ours)
        return begun

    def _average(self, layer: nn.Module, h: Tensor, s: Tensor, *, biased: bool) -> None:
        """Average a layer's factors in, and lay out its F for the weight and, where it is trained too, the bias."""
        state = self.state[layer.weight]
        for key, new in (("inputs", h), ("outputs", s)):
            new = min_max(new).to(layer.weight.dtype)
            state[key] = self.keep * state.get(key, torch.ones_like(new)) + self.add * new
        fisher = torch.outer(state["outputs"], state["inputs"]) + self.damping  # [out, in (+ 1)]
        if self.scalar:
            fisher.fill_(fisher.mean())
        weights = layer.weight[0].numel()  # K; 1 where a normalisation layer multiplies
        state["fisher"] = fisher[:, :weights].reshape(-1, *layer.weight.shape[1:]).expand_as(layer.weight).contiguous()
        if biased:
            self.state[layer.bias]["fisher"] = fisher[:, -1].expand_as(layer.bias).contiguous()

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        for p in params:
            state = self.state[p]
            if "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(p)
            if "fisher" not in state:
                state["fisher"] = torch.ones_like(p)
        m, fisher = ([self.state[p][key] for p in params] for key in ("exp_avg", "fisher"))
        beta, decay, lr = group["beta"], group["weight_decay"], float(group["lr"])
        if decay and not self.decoupled:
            grads = torch._foreach_add(grads, params, alpha=decay)
        torch._foreach_lerp_(m, grads, 1 - beta)
        group["steps"] += 1
        if decay and self.decoupled:
            torch._foreach_mul_(params, 1 - lr * decay)
        torch._foreach_addcdiv_(params, m, fisher, value=-lr / (1 - beta ** group["steps"]))

    @torch.no_grad()
    def fisher_range(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest entry of F by layer; layers that no backward pass came through yet are left out."""
        ranges = {}
        for name, layer in self.layers.items():
            found = [self.state[p]["fisher"].aminmax() for p in (layer.weight, layer.bias) if p in self.state]
            if found:
                ranges[name] = (min(float(f.min) for f in found), max(float(f.max) for f in found))
        return ranges
