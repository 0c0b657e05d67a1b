"""Linear and convolutional layers as matrices: what can be factored, homogeneous inputs, parameters to and fro."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Layer", "factorable", "layer_inputs", "layer_outputs", "linear_layers", "to_matrices", "to_parameters"]

Layer = nn.Linear | nn.Conv2d


def factorable(model: nn.Module) -> dict[str, Layer]:
    """Every Linear and ungrouped Conv2d, by name; empty where there is none."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Layer) and getattr(m, "groups", 1) == 1}


def linear_layers(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Layer]:
    """Layers that can be factored, by name: every Linear and ungrouped Conv2d, or those in `names`.

    A layer that is used several times is one layer. One that shares its weight with another module (a head tied to an
    embedding) is refused with `ValueError`: the weight's gradient has parts that the layer does not see.
    """
    modules = dict(model.named_modules())
    if names is None:
        found = factorable(model)
        if not found:
            raise ValueError("the model has no Linear or ungrouped Conv2d layer to put Kronecker factors on")
        _refuse_shared(model, found)
        return found
    found = {}
    for name in names:
        if name not in modules:
            raise ValueError(f"no layer {name!r}; the model has {[n for n in modules if n]}")
        if not isinstance(modules[name], Layer):
            kind = type(modules[name]).__name__
            raise TypeError(f"layer {name!r} is a {kind}; only Linear and Conv2d can be factored")
        if getattr(modules[name], "groups", 1) != 1:
            raise ValueError(f"layer {name!r} is a grouped convolution; leave it out of `layers`")
        found[name] = modules[name]
    if not found:
        raise ValueError("layers is empty; name at least one layer, or pass None for all")
    _refuse_shared(model, found)
    return found


def _refuse_shared(model: nn.Module, layers: Mapping[str, Layer]) -> None:
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for p in module.parameters(recurse=False):
            owners.setdefault(id(p), []).append(name)
    for name, layer in layers.items():
        for p in layer.parameters(recurse=False):
            others = [o for o in owners[id(p)] if o != name]
            if others:
                raise ValueError(f"layer {name!r} shares its weight with {others}: leave it out of `layers`")


def layer_inputs(layer: Layer, x: Tensor, *, homogeneous: bool = True) -> Tensor:
    """Inputs [N, T, in (+ 1)] of a layer, the patches of a convolution; `homogeneous` ones end in a 1 for the bias."""
    if isinstance(layer, nn.Conv2d):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        x = F.unfold(x, layer.kernel_size, dilation=layer.dilation, stride=layer.stride).transpose(1, 2)
    else:
        x = x.reshape(x.shape[0], -1, x.shape[-1])
    return F.pad(x, (0, 1), value=1.0) if homogeneous and layer.bias is not None else x


def layer_outputs(layer: Layer, d: Tensor) -> Tensor:
    """Output gradients [N, T, out] of a layer."""
    if isinstance(layer, nn.Conv2d):
        return d.flatten(2).transpose(1, 2)
    return d.reshape(d.shape[0], -1, d.shape[-1])


def to_matrices(layers: Mapping[str, nn.Module], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters (or gradients of them) by name -> one homogeneous matrix [..., out, in (+1)] a layer."""
    result = {}
    for name, layer in layers.items():
        prefix = f"{name}." if name else ""
        weight = parameters[prefix + "weight"]
        weight = weight.flatten(weight.dim() - layer.weight.dim() + 1)
        result[name] = weight
        if layer.bias is not None:
            result[name] = torch.cat([weight, parameters[prefix + "bias"].unsqueeze(-1)], dim=-1)
    return result


def to_parameters(layers: Mapping[str, nn.Module], matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `to_matrices`."""
    result = {}
    for name, layer in layers.items():
        prefix = f"{name}." if name else ""
        matrix = matrices[name]
        if layer.bias is not None:
            matrix, result[prefix + "bias"] = matrix[..., :-1], matrix[..., -1]
        result[prefix + "weight"] = matrix.reshape(matrix.shape[:-2] + layer.weight.shape)
    return result
