"""AdaHessian against SGD, Adam and AdamW, and its curvature estimate against the exact diagonal."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from secondlook.curvature.flat import pack, unpack
from secondlook.optimizers.adahessian.method import AdaHessian, hutchinson_diag, spatial_mean
from secondlook.problems import datasets
from secondlook.problems.augment import crop_and_flip
from secondlook.problems.datasets import Dataset, Split
from secondlook.problems.images import ImageProblem
from secondlook.problems.models import digits_cnn, resnet20, resnet32
from secondlook.problems.pairing import COPY, first_stream
from secondlook.problems.training import History, cross_entropy, fit, minibatches, step_decay
from secondlook.problems.training import accuracy as percent_correct
from secondlook.problems.tuning import TUNING_SEED
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

LOSS_ROWS = 2048  # training images on which the training loss is read


PROBLEMS = {
    "digits-cnn": ImageProblem("digits", partial(digits_cnn, (8, 16), batch_norm=True, global_pool=True)),
    "cifar10-resnet20": ImageProblem("cifar10-jpeg", resnet20, crop_and_flip),
    "cifar10-resnet32": ImageProblem("cifar10-jpeg", resnet32, crop_and_flip),
}

VARIANTS = {
    "adahessian": {},
    "adahessian-signed": {"signed_average": True},  # as printed: the average of z * (H z)
    "adahessian-every5": {"update_every": 5},
    "adahessian-4probes": {"n_probes": 4},
}


def optimizer(arm: str, model: nn.Module, lr: float, decay: float, seed: int) -> torch.optim.Optimizer:
    """An arm's optimizer. `decay` is the strength of an L2 term.

    Decoupled methods get `decay / lr` as in the released recipe, so that they shrink weights by `decay` a step.
    """
    params = list(model.parameters())
    match arm.removesuffix("-copy"):
        case "sgd":
            return torch.optim.SGD(params, lr, momentum=0.9, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(params, lr, weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW(params, lr, weight_decay=decay / lr)
        case name if name in VARIANTS:
            signs = torch.Generator(params[0].device).manual_seed(seed)
            return AdaHessian(params, lr, weight_decay=decay / lr, generator=signs, **VARIANTS[name])
    raise ValueError(f"no arm {arm!r}; use sgd, adam, adamw, {', '.join(VARIANTS)}, or one with -copy")


def passes(arm: str) -> int:
    """Backward passes a step: the Hessian-vector product is one more."""
    return 2 if arm.startswith("adahessian") else 1


def train(
    arm: str,
    lr: float,
    seed: int,
    problem: ImageProblem,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int,
    weight_decay: float,
    every: int | None = 1,
) -> History:
    """One run, its learning rate x 0.1 after half and three quarters of the epochs.

    The history has test accuracy and training loss at `every` so many epochs, or (None) one row with test and
    validation.
    """
    # Arms with one seed share start and batches, so they can be paired.
    stream = first_stream(arm, seed, 3)
    model, batches = problem.start(data, batch_size, stream)
    steps = epochs * batches.steps_per_epoch

    @torch.no_grad()
    def evaluate(model: nn.Module) -> dict[str, float]:
        model.eval()
        test = {"test_accuracy": percent_correct(model, *data.test)}
        if every:
            head = (data.train.x[:LOSS_ROWS], data.train.y[:LOSS_ROWS])
            return {**test, "train_loss": cross_entropy(model, head)}
        val_loss, val_accuracy = cross_entropy(model, data.val), percent_correct(model, *data.val)
        return {**test, "val_loss": val_loss, "val_accuracy": val_accuracy}

    return fit(
        model,
        optimizer(arm, model, lr, weight_decay, stream + 2),
        batches,
        cross_entropy,
        steps=steps,
        schedule=step_decay([steps // 2, 3 * steps // 4]),
        graph=arm.startswith("adahessian"),
        evaluate=evaluate,
        every=every * batches.steps_per_epoch if every else None,
    )


Recipe = Callable[..., History]  # train, with all but arm, lr and seed settled


def tuned(arm: str, lrs: Sequence[float], seeds: int, recipe: Recipe) -> float:
    """The learning rate with the best final validation accuracy over the tuning seeds; ties by validation loss."""

    def score(lr: float) -> tuple[float, float]:
        ends = [recipe(arm, lr, TUNING_SEED + s, every=None) for s in range(seeds)]
        if any(h.diverged for h in ends):
            return -math.inf, -math.inf
        return sum(h.last("val_accuracy") for h in ends), -sum(h.last("val_loss") for h in ends)

    return lrs[0] if len(lrs) == 1 else max(lrs, key=score)


def accuracy(
    run: Run,
    *,
    problems: list[str],
    epochs: int,
    batch_size: int,
    weight_decay: float,
    tuning_seeds: int,
    lrs: dict[str, list[float]],
) -> None:
    """All optimizers at equal epochs, and once more with as many backward passes for the first-order ones."""
    for name in problems:
        problem = PROBLEMS[name]
        data = problem.load(run.device)
        steps = len(data.train.x) // batch_size
        chosen: dict[tuple[str, int], float] = {}
        for arm in run.track([*lrs, "adam-copy"], f"arms on {name}"):
            tuned_as, cost = arm.removesuffix("-copy"), passes(arm)
            for budget in sorted({epochs, 2 * epochs // cost}):
                recipe: Recipe = partial(
                    train, problem=problem, data=data, epochs=budget, batch_size=batch_size, weight_decay=weight_decay
                )
                if (tuned_as, budget) not in chosen:
                    chosen[tuned_as, budget] = tuned(tuned_as, lrs[tuned_as], tuning_seeds, recipe)
                lr = chosen[tuned_as, budget]
                run.record("tuned_lr", lr, method=arm, problem=name, step=budget)
                for seed in run.seeds:
                    h = recipe(arm, lr, seed, every=budget // epochs)  # as many rows for every budget
                    done = h.column("step")
                    keep = partial(run.record_series, method=arm, problem=name, seed=seed)
                    for column in ("test_accuracy", "train_loss"):
                        if budget == epochs:
                            keep(column, h.column(column), steps=[s / steps for s in done])
                        if budget * cost == 2 * epochs:
                            keep(f"{column}_at_cost", h.column(column), steps=[s * cost for s in done])


def lr_sweep(
    run: Run,
    *,
    problem: str,
    epochs: int,
    batch_size: int,
    weight_decay: float,
    centres: dict[str, float],
    factors: list[float],
) -> None:
    """How much the final test accuracy varies when an arm's usual learning rate is multiplied by each factor."""
    setting = PROBLEMS[problem]
    data = setting.load(run.device)
    for arm in run.track([*centres, "adam-copy"], "arms"):
        centre = centres[arm.removesuffix("-copy")]
        for seed in run.seeds:
            reached = []
            for factor in factors:
                h = train(
                    arm,
                    factor * centre,
                    seed,
                    setting,
                    data,
                    epochs=epochs,
                    batch_size=batch_size,
                    weight_decay=weight_decay,
                    every=None,
                )
                # A run that diverged ends with a network that guesses.
                reached.append(100 / data.classes if h.diverged else h.last("test_accuracy"))
            run.record_series("sweep_accuracy", reached, steps=factors, method=arm, problem=problem, seed=seed)
            run.record("spread", max(reached) - min(reached), method=arm, problem=problem, seed=seed)


def step_cost(run: Run, *, problem: str, batch_size: int, steps: int, repeats: int, arms: list[str]) -> None:
    """Time of one optimizer step with forward and backward passes, arms in turn; `steps` in a row count as one call."""
    setting = PROBLEMS[problem]
    data = setting.load(run.device)
    batch = (data.train.x[:batch_size], data.train.y[:batch_size])

    def contestant(arm: str, seed: int) -> Callable[[], None]:
        model = setting.model(generator=torch.Generator().manual_seed(seed)).to(run.device)
        params = list(model.parameters())
        opt = optimizer(arm, model, 1e-3, 0.0, seed)

        def call() -> None:
            for _ in range(steps):
                wants_graph = getattr(opt, "wants_graph", False)
                grads = torch.autograd.grad(cross_entropy(model, batch), params, create_graph=wants_graph)
                for p, g in zip(params, grads, strict=True):
                    p.grad = g
                opt.step()

        return call

    for seed in run.track(run.seeds, "seeds"):
        times = interleaved({arm: contestant(arm, seed) for arm in arms}, repeats=repeats)
        # The least disturbed repeat: whatever else the machine does only adds time.
        for arm, seconds in times.groupby("name")["seconds"].min().items():
            run.record("step_time", 1e3 * seconds / steps, method=arm, problem=problem, seed=seed)


def exact_diagonal(model: nn.Module, batch: Split) -> list[Tensor]:
    """The Hessian diagonal of the loss, one tensor a parameter, by one product H e_i for every coordinate i."""
    names, params = zip(*((n, p.detach()) for n, p in model.named_parameters()), strict=True)

    def loss(flat: Tensor) -> Tensor:
        scores = torch.func.functional_call(model, dict(zip(names, unpack(flat, params), strict=True)), (batch.x,))
        return nn.functional.cross_entropy(scores, batch.y)

    flat = pack(params)

    def entry(e: Tensor) -> Tensor:
        return torch.func.jvp(torch.func.grad(loss), (flat,), (e,))[1] @ e

    eye = torch.eye(flat.numel(), dtype=flat.dtype, device=flat.device)
    diagonal = torch.func.vmap(entry, chunk_size=64)(eye)
    return unpack(diagonal, params)


def estimator(
    run: Run, *, channels: list[int], train_steps: int, batch_size: int, probes: int, counts: list[int]
) -> None:
    """Error and noise of the curvature estimates in float64, on a small tanh net after a little training."""
    problem = "digits-tanh-cnn"
    data = datasets.load("digits").to(run.device)
    x, y = data.train.x.double(), data.train.y
    for seed in run.track(run.seeds, "seeds"):
        start = torch.Generator().manual_seed(seed)
        model = digits_cnn(channels, activation=nn.Tanh, generator=start).double().to(run.device)
        batches = minibatches(x, y, batch_size, torch.Generator(run.device).manual_seed(seed))
        fit(model, torch.optim.Adam(model.parameters(), 1e-2), batches, cross_entropy, steps=train_steps)
        batch = Split(*next(batches))
        params = list(model.parameters())
        exact = exact_diagonal(model, batch)
        kernels = [i for i, p in enumerate(params) if p.ndim == 4]
        grads = torch.autograd.grad(cross_entropy(model, batch), params, create_graph=True)

        def draw(generator: torch.Generator, grads: Sequence[Tensor] = grads, params: list = params) -> list[Tensor]:
            """`probes` independent one-probe estimates, signed, one tensor [probes, *shape] a parameter."""
            singles = [hutchinson_diag(grads, params, 1, signed=True, generator=generator) for _ in range(probes)]
            return [torch.stack(s) for s in zip(*singles, strict=True)]

        signed, other = (draw(torch.Generator(run.device).manual_seed(s)) for s in (seed, seed + COPY))
        absolute = [s.abs() for s in signed]  # |z * Hz| = |Hz|
        estimates = {
            "signed": signed,
            "signed-spatial": [torch.func.vmap(spatial_mean)(s) for s in signed],
            "absolute": absolute,
            "absolute-spatial": [torch.func.vmap(spatial_mean)(s) for s in absolute],
            "absolute-copy": [s.abs() for s in other],
        }
        truth, flat_truth = torch.cat([d.flatten() for d in exact]), torch.cat([exact[i].flatten() for i in kernels])
        for method, stack in estimates.items():
            keep = partial(run.record, method=method, problem=problem, seed=seed)
            everything = torch.cat([s.flatten(1) for s in stack], 1)
            on_kernels = torch.cat([stack[i].flatten(1) for i in kernels], 1)
            keep("inflation", on_kernels.mean(0).abs().sum() / flat_truth.abs().sum())
            keep("noise", on_kernels.std(0).norm() / on_kernels.mean(0).norm())
            for n in counts:
                means = everything.view(-1, n, everything.shape[1]).mean(1)
                keep("diagonal_error", (means - truth).square().sum(1).mean().sqrt() / truth.norm(), step=n)
