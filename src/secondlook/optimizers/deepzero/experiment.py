"""Estimates of the gradient from function values, networks trained by them, and what they cost."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from secondlook.curvature import numel, pack
from secondlook.optimizers.deepzero.burgers import Correction, initial, reference, waves
from secondlook.optimizers.deepzero.method import cge, layer_masks, rge
from secondlook.optimizers.deepzero.networks import small_convnet
from secondlook.optimizers.deepzero.setting import MU, TUNING_SEED, Setting
from secondlook.optimizers.deepzero.trainer import ZOTrainer, cge_by_layer, cross_entropy, frozen_statistics, whole_loss
from secondlook.problems import datasets
from secondlook.problems.images import ImageProblem
from secondlook.problems.models import mlp
from secondlook.problems.pairing import COPY
from secondlook.problems.training import cross_entropy as model_loss
from secondlook.problems.training import fit, minibatches
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved


def estimators(
    run: Run, *, width: int, batch_size: int, train_steps: int, mus: list[float], shares: list[float]
) -> None:
    """Error of both estimates against autograd, on a small net after a little training.

    Against mu, in both precisions, with all coordinates; against the number of queries, at the published mu in float64.
    `shares` are numbers of queries over the number of parameters; CGE has random coordinates up to 1, none beyond;
    nor has RGE's copy, which is there to be compared at 1.
    """
    data = datasets.load("digits").to(run.device)
    for seed in run.track(run.seeds, "seeds"):
        g = torch.Generator(run.device).manual_seed(seed)
        model = mlp([64, width, 10], nn.Tanh, torch.Generator().manual_seed(seed)).double().to(run.device)
        batches = minibatches(data.train.x.double(), data.train.y, batch_size, g)
        fit(model, torch.optim.Adam(model.parameters(), 1e-2), batches, model_loss, steps=train_steps)
        x, y = next(batches)
        params = [p.detach() for p in model.parameters()]
        loss = whole_loss(model, cross_entropy, (x, y))
        exact = pack(torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters())))
        keep = partial(run.record, problem="digits-mlp", seed=seed)

        for mu in mus:
            keep("error_by_mu", distance(pack(cge(loss, params, mu)), exact), method="cge", step=mu)
            single = whole_loss(model, cross_entropy, (x.float(), y))
            found = pack(cge(single, [p.float() for p in params], mu))
            keep("error_by_mu", distance(found.double(), exact), method="cge-float32", step=mu)

        for arm in ("rge", "rge-copy", "cge"):
            draws = torch.Generator(run.device).manual_seed(seed + COPY * (1 + arm.endswith("-copy")))
            for share in shares:
                if share > 1 and arm != "rge":
                    continue
                if arm == "cge":
                    found = cge(loss, params, MU, layer_masks(params, [share] * len(params), draws))
                else:
                    found = rge(loss, params, MU, round(share * len(exact)), draws)
                keep("error", distance(pack(found), exact), method=arm, step=share)
                keep("cosine", F.cosine_similarity(pack(found), exact, dim=0), method=arm, step=share)


def distance(found: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Relative distance of two vectors."""
    return (found - exact).norm() / exact.norm()


def training(
    run: Run,
    *,
    data: str,
    networks: dict[str, dict[str, Any]],
    batch_size: int,
    steps: int,
    rows: int,
    chunk: int,
    tuning_steps: int,
    lrs: dict[str, list[float]],
) -> None:
    """Test accuracy of small networks, trained by first order, CGE and RGE with as many queries as CGE has."""
    images = ImageProblem(data, small_convnet).load(run.device)
    for short, network in networks.items():
        setting = Setting(images, network, batch_size, steps, rows, chunk)
        problem = f"{data}-{short}"
        run.record("parameters", numel(setting.model().parameters()), method="network", problem=problem)
        for name, grid in run.track(lrs.items(), f"arms on {problem}"):
            lr = setting.tuned(name, grid, tuning_steps)
            run.record("tuned_lr", lr, method=name, problem=problem)
            for arm in (name, "rge-copy") if name == "rge" else (name,):
                for seed in run.seeds:
                    history = setting.train(arm, lr, seed)
                    at = {"method": arm, "problem": problem, "seed": seed}
                    for metric in ("val_loss", "test_accuracy"):
                        run.record_series(metric, history.column(metric), steps=history.column("step"), **at)
                    run.record("final_accuracy", history.last("test_accuracy"), **at)


def cost(run: Run, *, depths: list[int], batch_size: int, repeats: int, chunk: int, tensors: str = "meta") -> None:
    """Work of one estimate on the published networks, counted on tensors that hold no numbers (`meta`); or its time.

    Counted are the multiplications and additions of convolutions and matrix products, the directions' own left out.
    """
    for depth in run.track(depths, "networks"):
        problem = f"cifar10-{depth}"
        if not repeats:
            for arm, count in counted(depth, batch_size, chunk, tensors).items():
                run.record("work", count, method=arm, problem=problem, step=depth)
            continue
        for seed in run.seeds:
            g = torch.Generator(run.device).manual_seed(seed)
            batch = torch.randn(batch_size, 3, 32, 32, generator=g, device=run.device), torch.arange(batch_size) % 10
            batch = batch[0], batch[1].to(run.device)
            trainers = {
                arm: ZOTrainer(small_convnet(depth).to(run.device), arm, chunk=chunk, generator=g)
                for arm in ("cge", "rge")
            }
            calls = {arm: partial(t.step, batch) for arm, t in trainers.items()}
            for arm, seconds in interleaved(calls, repeats=repeats).groupby("name")["seconds"].min().items():
                run.record("step_time", seconds, method=arm, problem=problem, seed=seed, step=depth)


def counted(depth: int, batch_size: int, chunk: int, tensors: str) -> dict[str, int]:
    """Floating-point operations of CGE with and without feature reuse, and of RGE with as many queries."""
    model = small_convnet(depth).to(tensors)
    params = [p.detach() for p in model.parameters()]
    batch = (
        torch.zeros(batch_size, 3, 32, 32, device=tensors),
        torch.zeros(batch_size, dtype=torch.long, device=tensors),
    )
    size = numel(params)
    loss = whole_loss(model, F.cross_entropy, batch)
    directions = torch.zeros(size, size, device=tensors)
    calls = {
        "cge": lambda: cge_by_layer(model, F.cross_entropy, batch, MU, chunk=chunk),
        "cge-whole": lambda: cge(loss, params, MU, chunk=chunk),
        "rge": lambda: rge(loss, params, MU, directions=directions, chunk=chunk),
    }
    work = {}
    for arm, call in calls.items():
        with FlopCounterMode(display=False) as counter, frozen_statistics(model):
            call()
        # the sum over directions is no forward pass
        work[arm] = counter.get_total_flops() - (2 * size**2 if arm == "rge" else 0)
    return work


def burgers(
    run: Run,
    *,
    trajectories: list[int],
    horizon: int,
    unroll: int,
    batch_size: int,
    steps: int,
    mu: float,
    lrs: dict[str, list[float]],
) -> None:
    """Error of a coarse solver of Burgers' equation with a correction learned outside the loop, or inside it."""
    parts = [reference(waves(n, torch.Generator().manual_seed(i)), horizon).float() for i, n in enumerate(trajectories)]
    problem = Correction(*parts, unroll, batch_size, steps, mu)
    times = range(1, horizon + 1)
    for arm, grid in run.track(lrs.items(), "arms"):
        lr = problem.tuned(arm, grid, TUNING_SEED)
        run.record("tuned_lr", lr, method=arm, problem="burgers")
        for name in (arm, "non-copy") if arm == "non" else (arm,):
            for seed in run.seeds:
                error = problem.error(problem.fit(name, lr, seed), problem.test)
                at = {"method": name, "problem": "burgers", "seed": seed}
                run.record("solver_error", error.mean(), **at)
                run.record_series("error_in_time", error, steps=times, **at)
    plain = problem.error(initial(torch.Generator().manual_seed(0)), problem.test)
    for seed in run.seeds:  # nothing in it is drawn; a row a seed, so that it pairs with the arms
        run.record("solver_error", plain.mean(), method="uncorrected", problem="burgers", seed=seed)
    run.record_series("error_in_time", plain, steps=times, method="uncorrected", problem="burgers")
