"""M-FAC's products against dense algebra and against the clock, and what it is worth in pruning and in training."""

import copy
import math
from collections.abc import Callable
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from secondlook.curvature import pack, unpack
from secondlook.optimizers.m_fac.method import DynamicIHVP, StaticIHVP
from secondlook.optimizers.m_fac.pruning import batch_gradients, obs_prune, obs_step, prunable
from secondlook.optimizers.m_fac.setting import PROBLEMS, optimizer, train
from secondlook.problems.datasets import Split
from secondlook.problems.training import Minibatches, accuracy, cross_entropy, fit, minibatches
from secondlook.problems.tuning import TUNING_SEED, least
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

PRUNING_BATCH = 32  # examples a gradient averages over, as in the released code


# ----------------------------------------------------------------------------------------- the products


def exactness(run: Run, *, d: int, m: int, damps: list[float], entries: int) -> None:
    """Relative errors of products and of entries, against a dense inverse refined in extended precision."""
    for seed in run.track(run.seeds, "seeds"):
        generator = torch.Generator().manual_seed(seed)
        earlier, G = torch.randn(3 * m, d, generator=generator, dtype=torch.float64).to(run.device).split([2 * m, m])
        x = torch.randn(d, generator=generator, dtype=torch.float64).to(run.device)
        chosen = torch.randperm(d, generator=generator)[:entries].tolist()
        sides = np.column_stack([x.cpu().numpy(), np.eye(d)[:, chosen]])
        exact_rows = G.cpu().numpy().astype(np.longdouble)
        gram = exact_rows.T @ exact_rows / m
        for damp in damps:
            exact = _solve(gram + damp * np.eye(d), sides)
            keep = partial(run.record, "inverse_error", problem="gaussian", seed=seed, step=damp)
            static = StaticIHVP(G, damp)
            products = {
                "static": static.mul(x),
                "dynamic": _sliding(earlier, G, damp).mul(x),
                "static-float32": StaticIHVP(G.float(), damp).mul(x.float()),
                "dynamic-float32": _sliding(earlier.float(), G.float(), damp).mul(x.float()),
                "summed": StaticIHVP(math.sqrt(m) * G, damp).mul(x),  # without the 1/m before the sum
            }
            for method, u in products.items():
                error = np.linalg.norm(u.double().cpu().numpy() - exact[:, 0]) / np.linalg.norm(exact[:, 0])
                keep(error, method=method)
            block = exact[chosen, 1:]
            found = np.array([[static.entry(i, j).item() for j in chosen] for i in chosen])
            scale = np.sqrt(np.outer(block.diagonal(), block.diagonal()))  # no entry off the diagonal is larger
            keep(np.abs((found - block) / scale).max(), method="static-entries")


def _sliding(earlier: Tensor, G: Tensor, damp: float) -> DynamicIHVP:
    """A window that has seen other gradients first and ends with G, its oldest in the middle of the buffer."""
    window = DynamicIHVP(*G.shape, damp, G.dtype, G.device)
    for g in [*earlier[: len(G) + len(G) // 3], *G]:
        window.push(g)
    return window


def _solve(matrix: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """matrix^-1 sides: a dense inverse errs by the condition number, refinement in extended precision mends that."""
    inverse = np.linalg.inv(matrix.astype(float))
    found = (inverse @ sides).astype(np.longdouble)
    for _ in range(3):
        found += inverse @ (sides - matrix @ found).astype(float)
    return found.astype(float)


def scaling(run: Run, *, m: int, dims: list[int], d: int, windows: list[int], dense: list[int], repeats: int) -> None:
    """Times of products over d, and of setup and product over m; the best of `repeats`, all sizes in turn.

    A dense inverse exists only at small sizes, where the products mostly wait for their few calls to start. Those sizes
    are a problem of their own, `gaussian-small`.
    """
    problems = dict.fromkeys(dims, "gaussian") | dict.fromkeys(dense, "gaussian-small")
    for seed in run.track(run.seeds, "seeds"):
        generator = torch.Generator(run.device).manual_seed(seed)
        draw = partial(torch.randn, generator=generator, device=run.device)
        calls: dict[str, Callable[[], object]] = {}  # by metric, method and size
        for size in problems:
            x, window = draw(size), DynamicIHVP(m, size, device=run.device)
            calls[f"product_time static {size}"] = partial(StaticIHVP(draw(m, size)).mul, x)
            calls[f"product_time dynamic {size}"] = lambda w=window, x=x: (w.push(x), w.mul_latest())
            if size in dense:
                calls[f"product_time dense {size}"] = partial(torch.mv, draw(size, size), x)
        for count in windows:
            G = draw(count, d)
            calls[f"setup_time setup {count}"] = partial(StaticIHVP, G)
            calls[f"setup_time product {count}"] = partial(StaticIHVP(G).mul, draw(d))
        for name, seconds in interleaved(calls, repeats=repeats).groupby("name", sort=False)["seconds"].min().items():
            metric, method, size = name.split()
            problem = problems[int(size)] if metric == "product_time" else "gaussian"
            run.record(metric, 1e3 * seconds, method=method, problem=problem, seed=seed, step=int(size))


# ----------------------------------------------------------------------------------------- training


def training(
    run: Run,
    *,
    problem: str,
    epochs: int,
    batch_size: int,
    decay: dict[str, float],
    tuning_seeds: int,
    lrs: dict[str, list[float]],
) -> None:
    """Arms at equal epochs, each with the learning rate of the least validation loss over the tuning seeds."""
    data = PROBLEMS[problem].load(run.device)
    recipe = partial(train, problem=PROBLEMS[problem], data=data, epochs=epochs, batch_size=batch_size)

    def score(lr: float, arm: str) -> float:
        ends = [recipe(arm, lr, TUNING_SEED + s, decay=decay[arm])[1].last("val_loss") for s in range(tuning_seeds)]
        return sum(ends)

    chosen = {}
    for arm in run.track([*lrs, "adam-copy"], "arms"):
        base = arm.removesuffix("-copy")
        if base not in chosen:
            chosen[base] = least(lrs[base], partial(score, arm=base))
        run.record("tuned_lr", chosen[base], method=arm, problem=problem)
        for seed in run.seeds:
            _, history = recipe(arm, chosen[base], seed, decay=decay[base], curve=True)
            done = [step * batch_size / len(data.train.x) for step in history.column("step")]
            for metric in ("train_loss", "test_accuracy"):
                values = history.column(metric)
                run.record_series(metric, values, steps=done, method=arm, problem=problem, seed=seed)


def step_cost(run: Run, *, problem: str, batch_size: int, arms: list[str], steps: int, repeats: int) -> None:
    """Time of one step with its forward and backward passes, arms in turn; `steps` in a row count as one call."""
    data = PROBLEMS[problem].load(run.device)
    batch = (data.train.x[:batch_size], data.train.y[:batch_size])

    def contestant(arm: str, seed: int) -> Callable[[], object]:
        model = PROBLEMS[problem].model(generator=torch.Generator().manual_seed(seed)).to(run.device)
        opt = optimizer(arm, list(model.parameters()), 1e-3, 0.0, seed)
        graph = getattr(opt, "wants_graph", False)
        return lambda: fit(model, opt, (batch for _ in range(steps)), cross_entropy, steps=steps, graph=graph)

    for seed in run.track(run.seeds, "seeds"):
        times = interleaved({arm: contestant(arm, seed) for arm in arms}, repeats=repeats)
        for arm, seconds in times.groupby("name")["seconds"].min().items():
            run.record("step_time", 1e3 * seconds / steps, method=arm, problem=problem, seed=seed)


# ----------------------------------------------------------------------------------------- pruning


class DiagonalFisher:
    """The inverse of F's diagonal: `StaticIHVP` with blocks of one, in closed form."""

    def __init__(self, G: Tensor, damp: float = 1e-5) -> None:
        self.inverse = 1 / (damp + G.square().mean(0))

    def diag(self) -> Tensor:
        return self.inverse

    def mul(self, x: Tensor) -> Tensor:
        return self.inverse * x


def pruning(
    run: Run,
    *,
    problems: list[str],
    recipe: dict[str, float | str],
    sparsities: list[float],
    windows: list[int],
    block_size: int,
    gradual_window: int,
) -> None:
    """Accuracy after one-shot pruning by several criteria, and with the Fisher recomputed at every sparsity."""
    for name, seed in run.track([(n, s) for n in problems for s in run.seeds], "networks"):
        problem = PROBLEMS[name]
        data = problem.load(run.device)
        model, _ = train(seed=seed, problem=problem, data=data, **recipe)
        params = list(prunable(model).values())
        dense = pack(p.detach() for p in params)
        batches = minibatches(*data.train, PRUNING_BATCH, torch.Generator(run.device).manual_seed(3 * seed + 2))
        order = torch.randperm(len(dense), generator=torch.Generator().manual_seed(seed)).to(run.device)
        pruned = one_shot(model, batches, sparsities, windows, block_size, order)
        pruned["mfac-gradual"] = gradual(model, batches, sparsities, gradual_window)

        def reached(w: Tensor, split: Split, model: nn.Module = model, params: list = params) -> float:
            with torch.no_grad():
                torch._foreach_copy_(params, unpack(w, params))
            return accuracy(model, *split)

        # Where magnitude breaks is read from validation images, what the arms keep there from test images.
        floor = reached(dense, data.val) - 5
        broken = [s for s in sparsities if reached(pruned["magnitude"][s], data.val) < floor]
        at = broken[0] if broken else sparsities[-1]
        run.record("breaking_sparsity", at, method="magnitude", problem=name, seed=seed)
        run.record("dense_accuracy", reached(dense, data.test), method="dense", problem=name, seed=seed)
        for arm, weights in pruned.items():
            kept = {s: reached(w, data.test) for s, w in weights.items()}
            run.record_series("pruned_accuracy", kept.values(), steps=list(kept), method=arm, problem=name, seed=seed)
            run.record("accuracy_at_break", kept[at], method=arm, problem=name, seed=seed)


def one_shot(
    model: nn.Module,
    batches: Minibatches,
    sparsities: list[float],
    windows: list[int],
    block_size: int,
    order: Tensor,
) -> dict[str, dict[float, Tensor]]:
    """The weights [d] that each criterion leaves, by criterion and sparsity in percent; the model stays as it is."""
    params = list(prunable(model).values())
    dense = pack(p.detach() for p in params)
    counts = {s: int(s / 100 * len(dense) + 1e-6) for s in sparsities}
    least, middle, most = min(windows), sorted(windows)[len(windows) // 2], max(windows)
    G, other = (batch_gradients(model, cross_entropy, islice(batches, m), params) for m in (most, least))
    last_zero = G[:middle].clone()
    last_zero[-1] = 0  # as in the released code

    def prune(fisher: StaticIHVP | DiagonalFisher, w: Tensor = dense) -> dict[float, Tensor]:
        return {s: obs_step(w, fisher, n)[0] for s, n in counts.items()}

    full = StaticIHVP(G)
    return {
        "magnitude": {s: dense.index_fill(0, dense.abs().topk(n, largest=False).indices, 0) for s, n in counts.items()},
        "diagonal": prune(DiagonalFisher(G)),
        "mfac-block": prune(StaticIHVP(G, block_size=block_size)),
        **{f"mfac-{m}": prune(full if m == most else StaticIHVP(G[:m])) for m in windows},
        "mfac-released": prune(StaticIHVP(last_zero)),
        f"mfac-{least}-copy": prune(StaticIHVP(other)),
        # Every weight with the curvature of another one, back in place afterwards.
        "mfac-shuffled": {s: w[order.argsort()] for s, w in prune(full, dense[order]).items()},
    }


def gradual(model: nn.Module, batches: Minibatches, sparsities: list[float], window: int) -> dict[float, Tensor]:
    """The weights [d] that M-FAC leaves at each sparsity in percent, with new gradients at every one of them."""
    model, left = copy.deepcopy(model), {}
    for s in sparsities:
        obs_prune(model, cross_entropy, batches, s / 100, window)
        left[s] = pack(p.detach() for p in prunable(model).values())
    return left
