"""Quantizing a whole network, block after block, each on the outputs of the blocks already quantized."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secondlook.compression.gptq.grid import QuantizedWeight
from secondlook.compression.gptq.method import GPTQCalibrator

Quantizer = Callable[[Tensor, Tensor], QuantizedWeight]  # (weight, hessian) -> quantized weight


class QuantizedModel(NamedTuple):
    """A network whose linear layers hold quantized values, and those layers' integers by module name."""

    model: nn.Module
    layers: dict[str, QuantizedWeight]


class _Reached(Exception):
    """The forward pass has come to the first block; the rest of it is not needed."""


def block_inputs(model: nn.Module, block: nn.Module, calibration: Iterable[Tensor]) -> list[tuple[tuple, dict]]:
    """The arguments with which ``model(batch)`` calls ``block``, one entry a batch."""
    calls: list[tuple[tuple, dict]] = []

    def catch(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        calls.append((args, kwargs))
        raise _Reached

    handle = block.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for batch in calibration:
            try:
                model(batch)
            except _Reached:
                continue
            raise ValueError("the model's forward pass never calls the first block; check the block names")
    finally:
        handle.remove()
    return calls


def collect_hessians(block: nn.Module, names: Sequence[str], calls: list[tuple[tuple, dict]]) -> dict[str, Tensor]:
    """``2 E[x x^T]`` of the inputs of the named linear layers of ``block`` over the given calls."""
    calibrators, handles = {}, []
    for name in names:
        layer = block.get_submodule(name)
        seen = calibrators[name] = GPTQCalibrator(layer.in_features, device=layer.weight.device)
        handles.append(layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.add_batch(args[0])))
    try:
        for args, kwargs in calls:
            block(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: seen.hessian for name, seen in calibrators.items()}


@torch.no_grad()
def quantize_sequential(
    model: nn.Module,
    blocks: Sequence[str],
    calibration: Iterable[Tensor],
    quantize: Quantizer,
    *,
    true_sequential: bool = False,
) -> QuantizedModel:
    """A copy of ``model`` in which every ``nn.Linear`` of the named blocks is quantized.

    Args:
        blocks: module names in the order of the forward pass, each feeding the next: ``["blocks.0", ...]``.
            Layers outside (embeddings, output head) keep full precision, as in the paper.
        calibration: batches for ``model(batch)``.
        quantize: ``(weight, hessian) -> QuantizedWeight``, e.g. ``partial(gptq_quantize, bits=3)``.
        true_sequential: let each layer of a block see the quantized outputs of the layers before it in the
            same block, one pass a layer, instead of one pass a block.
    """
    if not blocks:
        raise ValueError("name at least one block to quantize")
    model = copy.deepcopy(model).eval()
    calls = block_inputs(model, model.get_submodule(blocks[0]), calibration)
    if not calls:
        raise ValueError("calibration is empty: give at least one batch")
    layers: dict[str, QuantizedWeight] = {}
    for block_name in blocks:
        block = model.get_submodule(block_name)
        names = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
        for together in [[name] for name in names] if true_sequential else [names]:
            for name, hessian in collect_hessians(block, together, calls).items():
                weight = block.get_submodule(name).weight
                quantized = quantize(weight, hessian)
                weight.copy_(quantized.dequantize())
                layers[f"{block_name}.{name}".rstrip(".")] = quantized
        outputs = [block(*args, **kwargs) for args, kwargs in calls]
        calls = [
            ((out[0] if isinstance(out, tuple) else out, *args[1:]), kwargs)
            for out, (args, kwargs) in zip(outputs, calls, strict=True)
        ]
    return QuantizedModel(model, layers)
