"""EnsLoss beside fixed losses: what it draws, networks on few rows of many features, pairs of CIFAR-10 classes."""

import itertools

import torch
from torch import Tensor

from secondlook.optimizers.ensloss.data import Problem, Rows
from secondlook.optimizers.ensloss.losses import EXP_NORM, loss_of, unsorted_derivatives
from secondlook.optimizers.ensloss.method import random_calibrated_derivatives
from secondlook.optimizers.ensloss.networks import accuracy as image_accuracy
from secondlook.optimizers.ensloss.networks import network
from secondlook.optimizers.ensloss.stack import MOMENTUM, Options, Stack, accuracy, train
from secondlook.problems import datasets
from secondlook.problems.pairing import first_stream
from secondlook.problems.training import cosine, fit, minibatches
from secondlook.problems.tuning import TUNING_SEED
from secondlook.suite.runner import Run


def derivatives(run: Run, *, lams: list[float], batch_size: int, batches: int, shown: int) -> None:
    """Random losses at random margins: how often a derivative falls as the margin grows, or is not negative."""
    for seed in run.track(run.seeds, "seeds"):
        g = torch.Generator().manual_seed(seed)
        z = 2 * torch.randn(batches, batch_size, generator=g, dtype=torch.float64)
        drawn = {("ensloss", lam): random_calibrated_derivatives(z, lam, g) for lam in lams}
        drawn["unsorted", 0.0] = unsorted_derivatives(z, g)
        for (method, lam), d in drawn.items():
            along = d.gather(1, z.argsort(1))
            wrong = (along.diff(dim=1) < 0).any(1) | (d >= 0).any(1)
            run.record("violations", int(wrong.sum()), method=method, problem=f"lam {lam:g}", seed=seed)
            if seed == 0 and lam == 0:
                for i in range(shown):
                    at = z[i].sort().values.tolist()
                    run.record_series("derivative", along[i], steps=at, method=method, problem=f"batch {i}")


def tabular(
    run: Run,
    *,
    problems: list[str],
    features: int | None,
    rows: int,
    width: int,
    depths: list[int],
    epochs: int,
    batch_size: int,
    arms: list[str],
    lrs: list[float],
    weight_decays: list[float],
    tuning_seeds: int,
) -> None:
    """Test accuracy by the number of hidden layers; each arm with its best options by validation accuracy.

    Learning rate and weight decay are chosen for every arm and depth, for all problems together.
    """
    whole = [Problem.load(name, features, run.device) for name in problems]
    options = list(itertools.product(lrs, weight_decays))
    shape = {"width": width, "epochs": epochs, "batch_size": batch_size, "device": run.device}
    tuning = [TUNING_SEED + i for i in range(tuning_seeds)]
    rehearsal = [[p.draw(rows, s) for s in tuning] for p in whole]
    data = [[p.draw(rows, s) for s in run.seeds] for p in whole]
    for depth in run.track(depths, "depths"):
        chosen: dict[str, tuple[float, float]] = {}
        found: dict[str, Tensor] = {}
        for arm in arms:
            name = arm.removesuffix("-copy")
            if name not in chosen:
                val = trained(name, depth, rehearsal, tuning, options, ("val",), **shape)["val"]
                chosen[name] = options[int(val.mean((1, 2)).argmax())]
            at = trained(arm, depth, data, list(run.seeds), [chosen[name]], ("train", "test"), **shape)
            found[arm] = at["test"][0]
            for i, problem in enumerate(problems):
                for j, seed in enumerate(run.seeds):
                    here = {"method": arm, "problem": problem, "seed": seed, "step": depth}
                    run.record("test_accuracy", found[arm][i, j], **here)
                    run.record("train_accuracy", at["train"][0, i, j], **here)
                    run.record("gain", found[arm][i, j] - found["bce"][i, j], **here)
            for metric, value in zip(("tuned_lr", "tuned_weight_decay"), chosen[name], strict=True):
                run.record(metric, value, method=arm, problem="all problems", step=depth)


def trained(
    arm: str,
    depth: int,
    data: list[list[Rows]],
    seeds: list[int],
    options: list[tuple[float, float]],
    parts: tuple[str, ...],
    *,
    width: int,
    epochs: int,
    batch_size: int,
    device: str,
) -> dict[str, Tensor]:
    """Accuracies [options, problems, seeds] on `parts` (train, val, test) of the rows `data[problem][seed]`."""
    cells = list(itertools.product(options, range(len(data)), range(len(seeds))))
    firsts = [first_stream(arm, seeds[s], 3) for _, _, s in cells]
    weights, orders = ([torch.Generator().manual_seed(f + i) for f in firsts] for i in (0, 1))
    draws = torch.Generator(device).manual_seed(firsts[0] + 2)
    x, y = (torch.stack([data[p][s].train[i] for _, p, s in cells]) for i in (0, 1))
    stack = Stack(x.shape[1], width, depth, weights, device)
    settings = Options(*(torch.tensor([o[i] for o, _, _ in cells], device=device) for i in (0, 1)))
    recipe = {"epochs": epochs, "batch_size": batch_size, "orders": orders, "clipped": arm == "exp"}
    train(stack, x, y, loss_of(arm, draws), settings, **recipe)
    shape = (len(options), len(data), len(seeds))
    return {
        part: torch.stack(
            [accuracy(stack.one(i), *getattr(data[p][s], part)) for i, (_, p, s) in enumerate(cells)]
        ).view(shape)
        for part in parts
    }


class ClippedSGD(torch.optim.SGD):
    """SGD whose gradients are cut to a norm first, as the released code does for the exponential loss."""

    def step(self, closure=None):  # type: ignore[no-untyped-def, override]
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], EXP_NORM)
        return super().step(closure)


def images(
    run: Run,
    *,
    data: str,
    pairs: list[list[int]],
    networks: list[str],
    shrink: int,
    arms: list[str],
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    every: int,
) -> None:
    """Test accuracy on pairs of classes, by the published recipe; no arm is tuned."""
    for pair, name in run.track(list(itertools.product(pairs, networks)), "pairs"):
        problem = f"{name}-{pair[0]}-{pair[1]}"
        known, test = two_classes(data, pair, run.device)
        for seed in run.seeds:
            ends = {}
            for arm in arms:
                first = first_stream(arm, seed, 3)
                model = network(name, shrink, torch.Generator().manual_seed(first)).to(run.device)
                order, draws = (torch.Generator(run.device).manual_seed(first + i) for i in (1, 2))
                kind = ClippedSGD if arm == "exp" else torch.optim.SGD
                loss = loss_of(arm, draws)
                batches = minibatches(*known, min(batch_size, len(known[1])), order)
                history = fit(
                    model,
                    kind(model.parameters(), lr, momentum=MOMENTUM, weight_decay=weight_decay),
                    batches,
                    lambda model, batch, loss=loss: loss(model(batch[0])[:, 0], batch[1]),
                    steps=epochs * batches.steps_per_epoch,
                    schedule=cosine(epochs * batches.steps_per_epoch),
                    evaluate=lambda model, test=test: {"test_accuracy": image_accuracy(model, *test)},
                    every=every * batches.steps_per_epoch,
                )
                at = {"method": arm, "problem": problem, "seed": seed}
                steps = [step / batches.steps_per_epoch for step in history.column("step")]
                run.record_series("image_accuracy", history.column("test_accuracy"), steps=steps, **at)
                ends[arm] = history.last("test_accuracy")
            for arm, end in ends.items():
                at = {"method": arm, "problem": problem, "seed": seed}
                run.record("image_gain", end - ends["bce"], **at)
                run.record("image_lead", end - max(ends["bce"], ends["hinge"]), **at)


def two_classes(data: str, pair: list[int], device: str) -> list[tuple[Tensor, Tensor]]:
    """Images of two classes and targets 0 and 1, for training and test; scaled by the training images of both.

    What the data set keeps for validation trains, too: nothing is tuned.
    """
    whole = datasets.load(data)
    parts = []
    for splits in ((whole.train, whole.val), (whole.test,)):
        mine = [(y == pair[0]) | (y == pair[1]) for _, y in splits]
        x, y = (torch.cat([split[i][m] for split, m in zip(splits, mine, strict=True)]) for i in (0, 1))
        parts.append((x, (y == pair[1]).float()))
    std, mean = torch.std_mean(parts[0][0], (0, 2, 3), keepdim=True)
    return [(((x - mean) / std).to(device), y.to(device)) for x, y in parts]
