"""How well the approximations track the exact damped response, what they cost, and whether they predict retraining."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from secondlook.influence.ekfac_influence import tail
from secondlook.influence.ekfac_influence.arms import (
    borrowed,
    exact,
    fit_all,
    random_subspace,
    with_random_basis,
)
from secondlook.influence.ekfac_influence.ensemble import losses, train_ensemble
from secondlook.influence.ekfac_influence.exact import Solver
from secondlook.influence.ekfac_influence.lissa import lissa_solver
from secondlook.influence.ekfac_influence.method import EKFACInfluence
from secondlook.influence.ekfac_influence.proximal import pbrf, response
from secondlook.influence.ekfac_influence.setting import Trained, draw, generator, train
from secondlook.problems import datasets, zoo
from secondlook.suite.runner import Run
from secondlook.suite.timing import seconds

Batch = tuple[Tensor, Tensor]
Matrices = dict[str, Tensor]


def pbrf_correlation(
    run: Run,
    *,
    tasks: Sequence[str],
    steps: int,
    batch_size: int,
    queries: int,
    candidates: int,
    checked: int,
    solver: str,
    lissa_batch: int,
) -> None:
    """Correlation of every approximation with the exact damped Gauss-Newton influence, itself checked on real PBRFs."""
    for task in run.track(tasks, "tasks"):
        others = [seed + 1 for seed in run.seeds]  # independent networks for the controls
        trained = train(task, [*run.seeds, *others], steps=steps, batch_size=batch_size, device=run.device)
        for seed in run.track(run.seeds, "seeds"):
            network = trained.networks[seed]
            query = draw(trained.data.test, queries, generator(seed, 1))
            points = draw(trained.data.train, candidates, generator(seed, 2))
            fits = fit_all(network, trained, seed, run.device)
            ours = fits["ekfac"]
            damping = ours.damping
            grads = ours.gradients([query])
            inputs = [x for x, _ in trained.batches()]

            solve = exact(solver, network, inputs, trained.task.loss, damping)
            truth = ours.scores_along(solve(grads), [points])
            directions = {name: f.precondition(grads) for name, f in fits.items()}
            directions["lissa"] = lissa_solver(
                network,
                trained.data.train.x,
                trained.task.loss,
                damping,
                depth=len(trained.data.train.x),
                batch_size=lissa_batch,
                generator=generator(seed, 3),
            )(grads)
            directions["dot-scaled"] = {name: g / damping[name] for name, g in grads.items()}
            directions["ekfac-random-basis"] = with_random_basis(ours, generator(seed, 4)).precondition(grads)
            scores = {name: ours.scores_along(d, [points]) for name, d in directions.items()}

            stranger = trained.networks[seed + 1]
            foreign = fit_all(stranger, trained, seed, run.device)
            scores["ekfac-other-network"] = borrowed(ours, foreign["ekfac"]).scores([query], [points])
            scores["dot-copy"] = foreign["dot"].scores([query], [points])

            means = {name: pearson(s, truth).mean() for name, s in scores.items()}
            for name, s in scores.items():
                where = {"method": name, "problem": task, "seed": seed}
                run.record("pearson", means[name], **where)
                run.record("spearman", pearson(ranks(s), ranks(truth)).mean(), **where)
                run.record("gain_over_dot", means[name] - means["dot"], **where)
                run.record("gain_over_lissa", means[name] - means["lissa"], **where)
            test = trained.task.output_loss.loss(network(trained.data.test.x), trained.data.test.y).mean()
            run.record("test_loss", test.detach(), method="network", problem=task, seed=seed)
            some = points[0][:checked], points[1][:checked]
            agreement, residual = pbrf_agreement(network, trained, some, query, damping, solve, truth[:, :checked])
            run.record("pbrf_agreement", agreement, method="exact", problem=task, seed=seed)
            run.record("pbrf_residual", residual, method="exact", problem=task, seed=seed)


def low_rank(run: Run, *, ranks: Sequence[int], fitted: int, queries: int, candidates: int, context: int) -> None:
    """Correlation of scores with compressed query gradients with the uncompressed ones, on a character transformer."""
    for seed in run.track(run.seeds, "seeds"):
        influence, query, points = language_model(run, seed, fitted, queries, candidates, context)
        directions = influence.precondition(influence.gradients(query))
        full = influence.scores_along(directions, points)
        for rank in ranks:
            scores = {
                "svd": influence.scores_along(directions, points, rank=rank),
                "random-subspace": influence.scores_along(
                    random_subspace(directions, rank, generator(seed, 5)), points
                ),
            }
            for method, s in scores.items():
                value = pearson(s, full).mean()
                run.record("rank_correlation", value, method=method, problem="char-gpt", seed=seed, step=rank)


def cost(
    run: Run,
    *,
    task: str,
    steps: int,
    batch_size: int,
    counts: Sequence[int],
    candidates: int,
    lissa_batch: int,
    lissa_depth: int | None = None,
) -> None:
    """Seconds for a number of queries, fits included: EK-FAC, LiSSA one query at a time, and LiSSA all at once.

    LiSSA takes `lissa_depth` steps a query, as many as there are training points unless told otherwise.
    """
    trained = train(task, run.seeds, steps=steps, batch_size=batch_size, device=run.device)
    for seed in run.track(run.seeds, "seeds"):
        calls = contestants(trained, seed, candidates, lissa_batch, lissa_depth, run.device)
        x, y = draw(trained.data.test, max(counts), generator(seed, 1))
        calls["ekfac"]((x, y))  # warm up: its milliseconds would show it
        for count in counts:
            taken = {name: typical_seconds(partial(call, (x[:count], y[:count]))) for name, call in calls.items()}
            for name, value in taken.items():
                where = {"method": name, "problem": task, "seed": seed, "step": count}
                run.record("seconds", value, **where)
                run.record("speedup", taken["lissa"] / value, **where)


def typical_seconds(call: Callable[[], object]) -> float:
    """Wall time of a call; the median of up to nine where it takes only milliseconds."""
    first = seconds(call)
    return median([first, *(seconds(call) for _ in range(min(8, int(0.1 / first))))])


def contestants(
    trained: Trained, seed: int, candidates: int, lissa_batch: int, lissa_depth: int | None, device: str
) -> dict[str, Callable[[Batch], Tensor]]:
    """From queries to scores on `candidates` training points, with everything that has to be fitted on the way."""
    network, loss, x = trained.networks[seed], trained.task.loss, trained.data.train.x
    points = [draw(trained.data.train, candidates, generator(seed, 2))]
    plain = EKFACInfluence(network, loss, strategy="identity").fit(trained.batches())
    damping = EKFACInfluence(network, loss).fit(trained.batches(), generator=generator(seed, 0, device)).damping

    def ekfac(query: Batch) -> Tensor:
        influence = EKFACInfluence(network, loss)
        return influence.fit(trained.batches(), generator=generator(seed, 0, device)).scores([query], points)

    def lissa(query: Batch, at_once: int) -> Tensor:
        g = generator(seed, 3)
        solve = lissa_solver(
            network, x, loss, damping, depth=lissa_depth or len(x), batch_size=lissa_batch, generator=g
        )
        parts = zip(*(t.split(at_once) for t in query), strict=True)
        solved = [solve(plain.gradients([part])) for part in parts]
        return plain.scores_along({n: torch.cat([v[n] for v in solved]) for n in damping}, points)

    return {
        "ekfac": ekfac,
        "lissa": partial(lissa, at_once=1),
        "lissa-batched": partial(lissa, at_once=len(x)),
        "lissa-copy": partial(lissa, at_once=1),
    }


def lds(
    run: Run,
    *,
    tasks: Sequence[str],
    steps: int,
    batch_size: int,
    subsets: int,
    repeats: int,
    share: float,
    queries: int,
) -> None:
    """Linear datamodeling score: do summed influences order the losses of models retrained on random subsets?

    For each query, the rank correlation over subsets of the mean loss of `repeats` networks retrained on a subset with
    the sum of the subset's influences; mean over queries.
    """
    for task in run.track(tasks, "tasks"):
        trained = train(
            task, [*run.seeds, *(s + 1 for s in run.seeds)], steps=steps, batch_size=batch_size, device=run.device
        )
        for seed in run.track(run.seeds, "seeds"):
            query = draw(trained.data.test, queries, generator(seed, 1))
            include = random_subsets(len(trained.data.train.x), subsets, share, generator(seed, 6)).to(run.device)
            actual = retrained_losses(trained, seed, include, query, repeats, steps, batch_size)

            fits = fit_all(trained.networks[seed], trained, seed, run.device)
            grads = fits["ekfac"].gradients([query])
            damping = fits["ekfac"].damping
            inputs = [x for x, _ in trained.batches()]
            directions = {name: f.precondition(grads) for name, f in fits.items()}
            directions["exact"] = exact("dense", trained.networks[seed], inputs, trained.task.loss, damping)(grads)
            directions["dot-scaled"] = {name: g / damping[name] for name, g in grads.items()}
            scores = {name: fits["ekfac"].scores_along(d, trained.batches()) for name, d in directions.items()}
            foreign = EKFACInfluence(trained.networks[seed + 1], trained.task.loss, strategy="identity")
            scores["dot-copy"] = foreign.fit(trained.batches()).scores([query], trained.batches())
            shuffle = torch.randperm(include.shape[1], generator=generator(seed, 7)).to(run.device)
            scores["ekfac-shuffled"] = scores["ekfac"][:, shuffle]
            # sums of influences over each subset against what the networks did, both [Q, subsets]
            values = {name: pearson(ranks(s @ include.T), ranks(actual)).mean() for name, s in scores.items()}
            for name, value in values.items():
                where = {"method": name, "problem": task, "seed": seed}
                run.record("lds", value, **where)
                run.record("lds_gain_over_dot", value - values["dot"], **where)


def tails(
    run: Run,
    *,
    fitted: int,
    queries: int,
    candidates: int,
    context: int,
    share: float,
    resamples: int,
) -> None:
    """Power-law fits to the largest influences on each query, over many passages of a character transformer's text."""
    for seed in run.track(run.seeds, "seeds"):
        influence, query, points = language_model(run, seed, fitted, queries, candidates, context)
        scores = {"ekfac": influence.scores(query, points, rank=32).cpu()}
        scores["gaussian"] = torch.randn(scores["ekfac"].shape, generator=generator(seed, 8))
        for method, values in scores.items():
            g = generator(seed, 9)
            fits = [tail.power_law(-row, share, resamples, g) for row in values]
            where = {"method": method, "problem": "char-gpt", "seed": seed}
            run.record("tail_exponent", sum(f.exponent for f in fits) / len(fits), **where)
            run.record("power_law_share", sum(f.ks_p >= 0.1 for f in fits) / len(fits), **where)
            run.record("gain_over_exponential", sum(f.log_likelihood_gain for f in fits) / len(fits), **where)


# ------------------------------------------------------------------------------------------------ pieces


def pbrf_agreement(
    network: nn.Module,
    trained: Trained,
    points: Batch,
    query: Batch,
    damping: Mapping[str, float],
    solve: Solver,
    truth: Tensor,
) -> tuple[Tensor, float]:
    """Correlation of exact influence [Q, N] with real PBRF responses over training points, and the solves' residual."""
    loss = trained.task.output_loss
    network = copy.deepcopy(network).double()
    inputs = [x.double() for x, _ in trained.batches()]
    (px, py), (qx, qy) = ((x.double(), y.double() if y.is_floating_point() else y) for x, y in (points, query))
    eps = 1e-4 / sum(map(len, inputs))  # larger weights cross kinks of the ReLUs
    responded, residual = pbrf(network, inputs, (px, py), loss, damping, solve, eps=eps, tolerance=1e-3)
    return pearson(response(network, responded, (qx, qy), loss, eps), truth).mean(), residual


def random_subsets(examples: int, subsets: int, share: float, g: torch.Generator) -> Tensor:
    """[subsets, examples] of 0 and 1, each row with round(share * examples) ones."""
    order = torch.rand(subsets, examples, generator=g).argsort(1).argsort(1)
    return (order < round(share * examples)).float()


def retrained_losses(
    trained: Trained, seed: int, include: Tensor, query: Batch, repeats: int, steps: int, batch_size: int
) -> Tensor:
    """Loss on each query of networks trained on each subset, mean over initialisations, [Q, subsets]."""
    task = trained.task
    total = torch.zeros(len(query[0]), len(include), device=include.device)
    for repeat in range(repeats):
        networks = [task.network(10_000 * (seed + 1) + repeat).to(include.device)] * len(include)
        parameters = train_ensemble(
            networks,
            task.output_loss,
            *trained.data.train,
            steps=steps,
            lr=task.lr,
            batch_size=batch_size,
            generator=generator(seed, 100 + repeat),
            weight_decay=trained.decays[seed],
            include=include,
        )
        total += losses(networks[0], parameters, task.output_loss, *query).T
    return total / repeats


def language_model(
    run: Run, seed: int, fitted: int, queries: int, candidates: int, context: int
) -> tuple[EKFACInfluence, list[Batch], list[Batch]]:
    """EK-FAC on the MLP layers of the reference transformer; held-out passages as queries, training ones to score."""
    model = zoo.load("char-gpt", seed, root=run.results, device=run.device)
    facts = zoo.provenance("char-gpt", seed, root=run.results)
    text = datasets.corpus(facts["settings"]["corpus"])
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.endswith((".up", ".down"))]
    g = generator(seed, 10)

    def passages(tokens: Tensor, count: int, size: int) -> list[Batch]:
        start = context * torch.randperm((len(tokens) - 1) // context, generator=g)[:count]  # none overlap
        windows = tokens[start.unsqueeze(1) + torch.arange(context + 1)].to(run.device)
        return [(w[:, :-1], w[:, 1:]) for w in windows.split(size)]

    influence = EKFACInfluence(model, "ce", layers=names)
    influence.fit(passages(text.train, fitted, 32), generator=generator(seed, 11, run.device))
    return influence, passages(text.val, queries, queries), passages(text.train, candidates, 32)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation along the last dimension."""
    a, b = (v - v.mean(-1, keepdim=True) for v in (a.double(), b.double()))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def ranks(values: Tensor) -> Tensor:
    return values.argsort(-1).argsort(-1)
