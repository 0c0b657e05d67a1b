"""Norms, effective steps, accuracy, perplexity and cost of SGDP and AdamP beside SGD, momentum and AdamW."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secondlook.optimizers.adamp.circle import descend, settled, starts
from secondlook.optimizers.adamp.method import predicted_norm_sq
from secondlook.optimizers.adamp.setting import (
    MOMENTUM,
    PROBLEMS,
    Job,
    hidden,
    optimizer,
    row_norms_sq,
    train,
    train_gpt,
)
from secondlook.problems import datasets
from secondlook.problems.models import resnet20
from secondlook.problems.training import cross_entropy, minibatches
from secondlook.problems.tuning import TUNING_SEED
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

T = TypeVar("T")


def identity(run: Run, *, steps: int, batch_size: int, lr: float) -> None:
    """Worst relative error of the predicted squared norms over a float64 run of SGD with momentum."""
    data = datasets.load("digits")
    x, y = data.train.x.double(), data.train.y
    for seed in run.track(run.seeds, "seeds"):
        for problem, eps in (("digits-mlp-bn", 1e-30), ("digits-mlp-bn-usual-eps", 1e-5)):
            model = PROBLEMS["digits-mlp-bn"].model(generator=torch.Generator().manual_seed(seed)).double()
            for m in model.modules():
                if isinstance(m, nn.BatchNorm1d):
                    m.eps = eps  # batch norm's own constant is all that breaks the invariance
            weights = hidden(model)
            opt = torch.optim.SGD(model.parameters(), lr, momentum=MOMENTUM)
            norms, buffers = [row_norms_sq(weights)], []
            for batch in itertools.islice(minibatches(x, y, batch_size, torch.Generator().manual_seed(seed)), steps):
                opt.zero_grad()
                cross_entropy(model, batch).backward()
                opt.step()
                norms.append(row_norms_sq(weights))
                buffers.append(row_norms_sq([opt.state[w]["momentum_buffer"] for w in weights]))
            seen, p_sq = torch.stack(norms), torch.stack(buffers)
            for method, momentum in (("lemma", MOMENTUM), ("without-cross-terms", 0.0)):
                error = (predicted_norm_sq(seen[0], p_sq, lr, momentum) / seen - 1).abs().max()
                run.record("identity_error", error, method=method, problem=problem, seed=seed)


def toy(
    run: Run,
    *,
    steps: int,
    momenta: list[float],
    tolerance: float,
    norm: float,
    tuning: dict[str, list[float]],
    tuning_starts: int,
) -> None:
    """Norms and settling times on -cos(w, w*), at the page's learning rate and at each method's best.

    The page prints no learning rate: it is taken as the one with which momentum 0.9 ends at the printed `norm`.
    """
    begin, others = starts(run.seeds), starts([TUNING_SEED], tuning_starts)
    fine = torch.logspace(-2, -1, 300, dtype=torch.float64)
    ends = descend(*_grid(begin, fine, [MOMENTUM]), steps)[1][-1].view(len(begin), -1)
    page = fine[(ends - norm).abs().argmin(1)]
    shown = sorted({round(steps ** (i / 40)) for i in range(41)})
    lrs = torch.tensor(tuning["lrs"], dtype=torch.float64)
    tries = len(lrs) * len(tuning["momenta"])  # as many for the method that has no momentum to choose
    finer = torch.logspace(lrs.min().log10(), lrs.max().log10(), tries, dtype=torch.float64)
    tried = {arm: (lrs, tuning["momenta"]) for arm in ("sgd-momentum", "sgdp")} | {"sgd": (finer, [0.0])}
    taken: dict[str, dict[str, Tensor]] = {f"cosine-{m:g}": {} for m in momenta} | {"cosine-tuned": {}}
    for arm, choices in run.track(list(tried.items()), "methods"):
        go = partial(descend, steps=steps, projected=arm == "sgdp")
        for momentum in momenta:
            problem = f"cosine-{momentum:g}"
            angles, norms = go(begin, page, torch.full_like(page, 0.0 if arm == "sgd" else momentum))
            taken[problem][arm] = settled(angles, tolerance)
            for i, seed in enumerate(run.seeds):
                keep = {"method": arm, "problem": problem, "seed": seed}
                run.record("final_norm", norms[-1, i], **keep)
                run.record_series("norm", [norms[t - 1, i] for t in shown], steps=shown, **keep)
                run.record_series("angle", [angles[t - 1, i] for t in shown], steps=shown, **keep)
        grid = _grid(others, *choices)
        mean = settled(go(*grid)[0], tolerance).view(len(others), -1).mean(0)
        lr, momentum = (values[mean.argmin()] for values in grid[1:])
        run.record("tuned_lr", lr, method=arm, problem="cosine-tuned")
        run.record("tuned_momentum", momentum, method=arm, problem="cosine-tuned")
        angles, _ = go(begin, lr.expand_as(begin), momentum.expand_as(begin))
        taken["cosine-tuned"][arm] = settled(angles, tolerance)
    for (problem, by_arm), (i, seed) in itertools.product(taken.items(), enumerate(run.seeds)):
        for arm in by_arm:
            rival = min(float(other[i]) for name, other in by_arm.items() if name != arm)
            run.record("settling", by_arm[arm][i], method=arm, problem=problem, seed=seed)
            run.record("speedup", rival / by_arm[arm][i], method=arm, problem=problem, seed=seed)


def _grid(starts: Tensor, lrs: Tensor, momenta: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Every start with every learning rate and momentum, each flat; the start varies slowest."""
    grid = torch.meshgrid(starts, lrs, torch.tensor(momenta, dtype=starts.dtype), indexing="ij")
    return tuple(values.flatten() for values in grid)


def norms(
    run: Run, *, arms: dict[str, list[str]], epochs: int, batch_size: int, lrs: dict[str, float], abreast: int = 1
) -> None:
    """Norms, effective steps and accuracy without weight decay, at one learning rate for each kind of optimizer.

    `abreast` runs share a batched pass, which small networks gain from.
    """
    for name in arms:
        data = PROBLEMS[name].load(run.device)
        recipe = partial(train, problem=PROBLEMS[name], data=data, epochs=epochs, batch_size=batch_size, watched=True)
        for arm, seeds in run.track(list(itertools.product(arms[name], turns(run.seeds, abreast))), f"arms on {name}"):
            lr = lrs["adam" if arm.startswith("adam") else "sgd"]
            rows, watch = recipe(arm, [(lr, 0.0, seed) for seed in seeds])
            for i, seed in enumerate(seeds):
                keep = {"method": arm, "problem": name, "seed": seed}
                for metric in ("weight_norm", "effective_step", "looks_invariant", "test_accuracy"):
                    run.record_series(metric, [row[metric][i] for row in rows], steps=range(1, len(rows) + 1), **keep)
                run.record("norm_growth", watch.growth[i], **keep)
                run.record("growth_factor", watch.growth[i] / watch.travelled[i].sum(), **keep)


def turns(jobs: Sequence[T], abreast: int) -> list[Sequence[T]]:
    """The jobs in turns of at most `abreast`, which are run side by side."""
    return [jobs[i : i + abreast] for i in range(0, len(jobs), abreast)]


Scores = Callable[[str, list[Job]], list[tuple[float, ...]]]  # of an arm's jobs; the larger the better


def tuned(arm: str, lrs: Sequence[float], decays: Sequence[float], seeds: int, scores: Scores) -> tuple[float, float]:
    """The learning rate and weight decay with the best summed score over the tuning seeds."""
    grid = list(itertools.product(lrs, decays))
    if len(grid) == 1:
        return grid[0]
    found = scores(arm, [(*pair, TUNING_SEED + s) for pair in grid for s in range(seeds)])
    totals = [tuple(map(sum, zip(*own, strict=True))) for own in turns(found, seeds)]
    return grid[totals.index(max(totals))]


def accuracy(
    run: Run,
    *,
    problems: list[str],
    epochs: int,
    batch_size: int,
    lrs: dict[str, list[float]],
    decays: dict[str, list[float]],
    tuning_seeds: int,
    abreast: int = 1,
) -> None:
    """Final test accuracy, learning rate and weight decay of every arm tuned together on validation images."""
    for name in problems:
        data = PROBLEMS[name].load(run.device)
        recipe = partial(train, problem=PROBLEMS[name], data=data, epochs=epochs, batch_size=batch_size)

        def ends(arm: str, jobs: list[Job], recipe: Callable = recipe) -> dict[str, Tensor]:
            last = [recipe(arm, some)[0][-1] for some in turns(jobs, abreast)]
            return {name: torch.cat([row[name] for row in last]) for name in last[0]}

        def scores(arm: str, jobs: list[Job], ends: Callable = ends) -> list[tuple[float, ...]]:
            found = ends(arm, jobs)
            both = torch.stack([found["val_accuracy"], -found["val_loss"]], 1)
            return [tuple(score) for score in both.nan_to_num(nan=-math.inf).tolist()]

        for arm in run.track(lrs, f"arms on {name}"):
            lr, decay = tuned(arm, lrs[arm], decays[arm], tuning_seeds, scores)
            run.record("tuned_lr", lr, method=arm, problem=name)
            run.record("tuned_decay", decay, method=arm, problem=name)
            copies = [arm + "-copy"] if arm in ("sgd-nesterov", "adamw") else []
            for run_arm in (arm, *copies):
                found = ends(run_arm, [(lr, decay, seed) for seed in run.seeds])["test_accuracy"]
                for seed, end in zip(run.seeds, found, strict=True):
                    run.record("final_accuracy", end, method=run_arm, problem=name, seed=seed)


def language(
    run: Run,
    *,
    corpus: str,
    size: dict[str, int],
    batch_size: int,
    steps: int,
    lrs: dict[str, list[float]],
    decays: list[float],
    tuning_seeds: int,
) -> None:
    """Test perplexity of a character-level transformer, as it is and with weight normalisation in all its layers."""
    text = datasets.corpus(corpus)
    recipe = partial(train_gpt, text=text, size=size, batch_size=batch_size, steps=steps, device=run.device)
    for problem in ("char-gpt", "char-gpt-wn"):
        go = partial(recipe, normalised=problem.endswith("-wn"))
        ends: dict[tuple[str, int], float] = {}
        for arm in run.track(lrs, f"arms on {problem}"):
            lr, decay = tuned(
                arm,
                lrs[arm],
                decays,
                tuning_seeds,
                lambda arm, jobs, go=go: [(-go(arm, *job, part="val"),) for job in jobs],
            )
            run.record("tuned_lr", lr, method=arm, problem=problem)
            run.record("tuned_decay", decay, method=arm, problem=problem)
            copies = [arm + "-copy"] if arm == "adamw" else []
            for run_arm, seed in itertools.product([arm, *copies], run.seeds):
                ends[run_arm, seed] = go(run_arm, lr, decay, seed)
        for (arm, seed), end in ends.items():
            run.record("perplexity", end, method=arm, problem=problem, seed=seed)
            run.record("gain", ends["adamw", seed] - end, method=arm, problem=problem, seed=seed)


def step_cost(run: Run, *, width: int, batch_size: int, tensors: int, repeats: int) -> None:
    """Time of a training step of ResNet-20 on random images, and of the optimizer alone on many small tensors.

    All in turn; the optimizers alone also beside torch_optimizer's where it is installed.
    """
    made: dict[str, Callable[[list[Tensor]], Optimizer]] = {
        arm: partial(optimizer, arm, lr=1e-3, decay=1e-2) for arm in ("sgd-momentum", "sgdp", "adamw", "adamp")
    }
    try:
        import torch_optimizer
    except ImportError:
        run.note("peer torch_optimizer is not installed: pip install 'secondlook[peers]'")
    else:
        made["sgdp-peer"] = partial(torch_optimizer.SGDP, lr=1e-3, momentum=MOMENTUM, weight_decay=1e-2)
        made["adamp-peer"] = partial(torch_optimizer.AdamP, lr=1e-3, weight_decay=1e-2)

    def training_step(make: Callable[[list[Tensor]], Optimizer], seed: int, batch: int) -> Callable[[], None]:
        g = torch.Generator().manual_seed(seed)
        model = resnet20(width=width, generator=g).to(run.device)
        x = torch.randn(batch, 3, 32, 32, generator=g).to(run.device)
        y = torch.randint(10, (batch,), generator=g).to(run.device)
        opt = make(list(model.parameters()))

        def call() -> None:
            opt.zero_grad()
            cross_entropy(model, (x, y)).backward()
            opt.step()

        return call

    def step_alone(make: Callable[[list[Tensor]], Optimizer], seed: int) -> Callable[[], object]:
        g = torch.Generator().manual_seed(seed)
        shapes = itertools.islice(itertools.cycle([(16, 16, 3, 3), (32, 32), (32,)]), tensors)
        params = [torch.randn(s, generator=g).to(run.device).requires_grad_() for s in shapes]
        for p in params:
            p.grad = torch.randn(p.shape, generator=g).to(run.device)
        return make(params).step

    for seed in run.track(run.seeds, "seeds"):
        whole = {name: training_step(made[name], seed, batch_size) for name in ("adamw", "adamp")}
        whole["adamw-half-batch"] = training_step(made["adamw"], seed, batch_size // 2)
        alone = {name: step_alone(make, seed) for name, make in made.items()}
        for problem, contestants in (("resnet20", whole), ("small-tensors", alone)):
            times = interleaved(contestants, repeats=repeats)
            # The least disturbed repeat: whatever else the machine does only adds time.
            for arm, seconds in times.groupby("name")["seconds"].min().items():
                run.record("step_time", 1e3 * seconds, method=arm, problem=problem, seed=seed)
