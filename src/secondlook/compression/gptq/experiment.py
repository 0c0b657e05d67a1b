"""Measures GPTQ against round-to-nearest and its greedy predecessor, on a small GPT trained on real text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from secondlook.compression.gptq.grid import QuantizedWeight, output_error, rtn_quantize
from secondlook.compression.gptq.method import gptq_quantize
from secondlook.compression.gptq.obq import obq_quantize
from secondlook.compression.gptq.sequential import Quantizer, block_inputs, collect_hessians, quantize_sequential
from secondlook.problems import datasets, zoo
from secondlook.problems.zoo.char_gpt import perplexity, random_windows, windows
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

PROBLEM = "char-gpt"


def data_free(**options) -> Quantizer:
    """Round to nearest under the signature of the quantizers that look at the inputs."""
    return lambda weight, hessian: rtn_quantize(weight, **options)


def in_order(order: Tensor, weight: Tensor, hessian: Tensor, **options) -> QuantizedWeight:
    """GPTQ that visits the columns in the given order; the result is in the original one."""
    q = gptq_quantize(weight[:, order], hessian[order][:, order], **options)
    back = torch.argsort(order)
    return QuantizedWeight(q.integers[:, back], q.scale, q.zero, q.group_of[back], q.bits, q.loss)


def shuffled(weight: Tensor, hessian: Tensor, *, seed: int, **options) -> QuantizedWeight:
    """GPTQ with every input's statistics ascribed to another input: the control, compensation gone wrong."""
    order = torch.randperm(len(hessian), generator=torch.Generator().manual_seed(seed)).to(hessian.device)
    return gptq_quantize(weight, hessian[order][:, order], **options)


def reference(run: Run, seed: int, eval_windows: int) -> tuple[nn.Module, datasets.Corpus, Tensor]:
    """The trained network, its text, and evenly spaced windows of the test part."""
    model = zoo.load(PROBLEM, seed=seed, scale=run.scale, root=run.results, device=run.device)
    settings = zoo.provenance(PROBLEM, seed, run.scale, root=run.results)["settings"]
    text = datasets.corpus(settings["corpus"])
    held_out = windows(text.test, model.context)
    return model, text, held_out[:: max(1, len(held_out) // eval_windows)].to(run.device)


def calibration_text(model: nn.Module, text: datasets.Corpus, samples: int, seed: int, device: str) -> list[Tensor]:
    """Random windows of training text, the counterpart of the paper's 128 random segments of C4."""
    generator = torch.Generator().manual_seed(1000 + seed)
    drawn = next(random_windows(text.train, model.context, samples, generator))[:, :-1]
    return list(drawn.to(device).split(32))


def block_names(model: nn.Module) -> list[str]:
    return [f"blocks.{i}" for i in range(len(model.blocks))]


def perplexity_by_bits(
    run: Run, *, bits: list[int], group_size: int, calibration: int, eval_windows: int, mse: bool = True
) -> None:
    """Perplexity on held-out text after quantizing every block, for GPTQ, its variants, baselines and controls."""
    grouped = {"group_size": group_size}
    variants = {"": {}, "-symmetric": {"symmetric": True}, "-grouped": grouped} | (
        {"-mse": {"mse": True}} if mse else {}
    )
    for seed in run.track(run.seeds, "seeds"):
        model, text, held_out = reference(run, seed, eval_windows)
        real = calibration_text(model, text, calibration, seed, run.device)
        noise = [torch.randint_like(batch.cpu(), len(text.vocab), generator=g).to(batch)
                 for g in [torch.Generator().manual_seed(seed)] for batch in real]  # fmt: skip
        record = partial(run.record, problem=PROBLEM, seed=seed)
        record("perplexity", perplexity(model, held_out), method="dense", step=32)
        for b in bits:
            arms = {f"rtn{name}": (data_free(bits=b, **options), real[:1]) for name, options in variants.items()}
            arms |= {
                f"gptq{name}": (partial(gptq_quantize, bits=b, **options), real) for name, options in variants.items()
            }
            arms |= {
                "gptq-act-order": (partial(gptq_quantize, bits=b, act_order=True), real),
                "gptq-grouped-released": (partial(gptq_quantize, bits=b, group_range="block", **grouped), real),
                "gptq-random-text": (partial(gptq_quantize, bits=b), noise),
                "gptq-shuffled": (partial(shuffled, bits=b, seed=seed), real),
            }
            found = {
                name: perplexity(quantize_sequential(model, block_names(model), inputs, quantize).model, held_out)
                for name, (quantize, inputs) in run.track(list(arms.items()), f"{b} bits")
            }
            for name, value in found.items():
                record("perplexity", value, method=name, step=b)
                record("gain", found["rtn"] - value, method=name, step=b)
                record("against_plain", value / found["gptq"], method=name, step=b)


def layer_problems(model: nn.Module, inputs: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and Hessian (float64) of every linear layer in the blocks of the unquantized network."""
    layers = {}
    with torch.no_grad():
        for block_name in block_names(model):
            block = model.get_submodule(block_name)
            names = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
            for name, hessian in collect_hessians(block, names, block_inputs(model, block, inputs)).items():
                weight = block.get_submodule(name).weight.detach()
                layers[f"{PROBLEM}/{block_name}.{name}"] = (weight.double(), hessian.double())
    return layers


def column_order(run: Run, *, bits: int, calibration: int, max_columns: int) -> None:
    """Output error of each layer when the columns are taken in a fixed, sorted, reversed or greedy order."""
    for seed in run.track(run.seeds, "seeds"):
        model, text, _ = reference(run, seed, 1)
        layers = layer_problems(model, calibration_text(model, text, calibration, seed, run.device))
        for problem, (weight, hessian) in run.track(list(layers.items()), "layers"):
            columns = len(hessian)
            if columns > max_columns:  # the greedy order costs rows * columns^3
                continue
            draw = torch.randperm(columns, generator=torch.Generator().manual_seed(seed)).to(weight.device)
            weakest_first = torch.argsort(hessian.diagonal())
            found = {
                "rtn": rtn_quantize(weight, bits),
                "gptq": gptq_quantize(weight, hessian, bits),
                "gptq-act-order": gptq_quantize(weight, hessian, bits, act_order=True),
                "gptq-random-order": in_order(draw, weight, hessian, bits=bits),
                "gptq-reverse-order": in_order(weakest_first, weight, hessian, bits=bits),
                "obq": obq_quantize(weight, hessian, bits),
            }
            for method, quantized in found.items():
                error = output_error(weight, quantized, hessian)
                run.record("output_error", error, method=method, problem=problem, seed=seed)


def insensitivity(
    run: Run,
    *,
    bits: int,
    block_sizes: list[int],
    group_size: int,
    damping: list[float],
    calibration: int,
    eval_windows: int,
) -> None:
    """Integers that change with the block size (float64), and perplexity against dampening."""
    kinds = {
        "gptq": {},
        "gptq-grouped": {"group_size": group_size},
        "gptq-grouped-released": {"group_size": group_size, "group_range": "block"},
    }
    for seed in run.track(run.seeds, "seeds"):
        model, text, held_out = reference(run, seed, eval_windows)
        inputs = calibration_text(model, text, calibration, seed, run.device)
        for problem, (weight, hessian) in layer_problems(model, inputs).items():
            for method, options in kinds.items():
                quantize = partial(gptq_quantize, weight, hessian, bits, **options)
                whole = quantize(block_size=weight.shape[1]).integers  # one block: no lazy update at all
                for size in block_sizes:
                    changed = (quantize(block_size=size).integers != whole).sum()
                    run.record("changed_integers", changed, method=method, problem=problem, seed=seed, step=size)
        for percdamp in damping:
            quantize = partial(gptq_quantize, bits=bits, percdamp=percdamp)
            quantized = quantize_sequential(model, block_names(model), inputs, quantize).model
            value = perplexity(quantized, held_out)
            run.record("damped_perplexity", value, method="gptq", problem=PROBLEM, seed=seed, step=percdamp)


def random_layer(rows: int, columns: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A Gaussian weight and the Hessian of correlated Gaussian inputs, the workload for timing."""
    g = torch.Generator(device).manual_seed(seed)
    weight = torch.randn(rows, columns, generator=g, device=device)
    inputs = torch.randn(2 * columns, columns, generator=g, device=device).cumsum_(1)
    return weight, (inputs.T @ inputs) / columns


def speed(
    run: Run,
    *,
    square: list[int],
    greedy: list[int],
    rows: list[int],
    columns: int,
    bits: int,
    repeats: int,
    best_of: int,
) -> None:
    """Seconds for one layer as it grows: square layers, more rows at fixed columns, and GPTQ against OBQ.

    All sizes are timed in turn, so that a slow spell of the machine does not bend an exponent; a measurement is
    the shortest of ``best_of`` calls.
    """

    def time(sizes: list[tuple[int, int]], methods: dict[str, Callable]) -> pd.DataFrame:
        layers = {size: random_layer(*size, run.device) for size in sizes}
        calls = {(name, size[0]): partial(f, *layers[size], bits) for name, f in methods.items() for size in sizes}
        table = interleaved(calls, repeats=repeats * best_of)
        table["repeat"] //= best_of
        return table.groupby(["name", "repeat"])["seconds"].min().unstack("repeat")

    def record(metric: str, problem: str, table: pd.DataFrame) -> None:
        for (method, size), values in table.iterrows():
            for repeat, value in values.items():
                run.record(metric, value, method=method, problem=problem, seed=repeat, step=size)

    record("square_seconds", "random square layer", time([(d, d) for d in square], {"gptq": gptq_quantize}))
    record(
        "row_seconds", f"random layer, {columns} columns", time([(d, columns) for d in rows], {"gptq": gptq_quantize})
    )
    methods = {"gptq": gptq_quantize, "obq": obq_quantize, "obq-copy": obq_quantize}
    table = time([(d, d) for d in greedy], methods)
    table.index = pd.MultiIndex.from_tuples(table.index)
    record("small_seconds", "random square layer", table)
    for name in ("gptq", "obq-copy"):
        ratio = pd.concat({name: table.loc["obq"] / table.loc[name]})
        record("speedup", "random square layer", ratio)


def model_hours(run: Run, *, width: int, blocks: int, bits: int) -> None:
    """Hours to quantize a network of OPT's shape, from the time for one of its blocks with random weights.

    For OBQ, whose time is proportional to the rows, one row of the square layers, and these layers alone.
    """
    shapes = [(width, width, 4), (4 * width, width, 1), (width, 4 * width, 1)]  # attention, up, down

    def seconds(quantize: Callable, *layer) -> float:
        return interleaved({"": partial(quantize, *layer, bits)}, repeats=1, warmup=0)["seconds"].item()

    for seed in run.track(run.seeds, "repeats"):
        total = sum(n * seconds(gptq_quantize, *random_layer(r, c, run.device, seed)) for r, c, n in shapes)
        row = seconds(obq_quantize, *random_layer(1, width, run.device, seed))
        for method, block in {"gptq": total, "obq": 4 * width * row}.items():
            problem = f"OPT shape, width {width}"
            run.record("hours", block * blocks / 3600, method=method, problem=problem, seed=seed)
