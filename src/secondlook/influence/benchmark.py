"""The family's common protocol: EK-FAC influence against kronfluence, the public package for it.

Both sides fit EK-FAC factors on the same training examples (two passes, labels as given, so that nothing is random),
take damping 0.1 mean(Lambda), and score every query against every training example. Same batches, same precision, one
process, alternating order. kronfluence runs through its loader-level functions, without the file round trips of its
`Analyzer`, and all queries in one batch, which is its fastest setting. Networks are freshly initialised: the work does
not depend on the weights. `disagreement` is the largest difference of two scores over the largest score. `floor` says
how much of the time that scoring alone takes its operations need at the machine's best rates (`suite.floors`).

Your own estimator joins by `--method module:Class`. It is used as `Class(model).fit(batches).scores(queries, batches)`
with lists of batches (x, y), cross-entropy understood, and returns scores [Q, N] in the sign of `EKFACInfluence`. Its
`disagreement` is no error where it draws labels of its own, as `EKFACInfluence.fit` does by default.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secondlook.influence.ekfac_influence import EKFACInfluence
from secondlook.problems import datasets
from secondlook.problems.models.mlp import mlp
from secondlook.suite import floors
from secondlook.suite.named import load
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

METRICS = {
    "seconds": {"label": "time for fit and scores", "unit": "s", "timing": True},
    "speedup": {"label": "kronfluence's time over ours", "unit": "x", "timing": True},
    "floor": {
        "label": "least time of its operations at the machine's best rates, over the time taken",
        "unit": "%",
        "timing": True,
    },
    "arithmetic": {"label": "arithmetic a second", "unit": "GFLOP/s", "timing": True},
    "disagreement": {"label": "largest relative difference of scores", "unit": ""},
}
SCALES = {
    "smoke": {"problems": ["mlp"], "width": 32, "examples": 100, "queries": 10, "repeats": 2},
    "laptop": {"problems": ["mlp", "conv", "tokens"], "width": 128, "examples": 1000, "queries": 50, "repeats": 5},
    "gpu": {"problems": ["mlp", "conv", "tokens"], "width": 512, "examples": 1000, "queries": 200, "repeats": 7},
}
BATCH = 250
Batch = tuple[Tensor, Tensor]


def benchmark(
    run: Run,
    *,
    method: str | None = None,
    problems: Sequence[str],
    width: int,
    examples: int,
    queries: int,
    repeats: int,
) -> None:
    """Time both and `method` ("module:Class") beside them where given; compare the scores of all with ours."""
    try:
        import kronfluence  # noqa: F401
    except ImportError:
        run.note("peer kronfluence is not installed: pip install 'secondlook[peers]'")
        peer = False
    else:
        peer = True
    own = None if method is None else load(method, "the method")
    for problem in run.track(problems, "workloads"):
        model, train, query = workload(problem, width, examples, queries, run.device)
        contestants: dict[str, Callable[[], Tensor]] = {
            "secondlook": lambda m=model, t=train, q=query: our_scores(m, t, q)
        }
        if peer:
            contestants["kronfluence"] = lambda m=model, t=train, q=query: kronfluence_scores(m, t, q)
            for precision, dtype in (("float32", torch.float32), ("float64", torch.float64)):
                work = [copy.deepcopy(model).to(dtype), *((x.to(dtype), y) for x, y in (train, query))]
                ours, theirs = our_scores(*work), kronfluence_scores(*work)
                difference = (ours + theirs).abs().max() / ours.abs().max()  # theirs leave out the minus sign
                run.record("disagreement", difference, method="kronfluence", problem=f"{problem}-{precision}")
        batches = _split(train, BATCH)
        fitted = EKFACInfluence(model).fit(batches, targets="given")
        floors.record(run, partial(fitted.scores, [query], batches), method="scores", problem=problem)
        if own is not None:
            contestants[method] = lambda m=model, b=batches, q=query: own(m).fit(b).scores([q], b)
            ours = our_scores(model, train, query)
            difference = (contestants[method]() - ours).abs().max() / ours.abs().max()
            run.record("disagreement", difference, method=method, problem=problem)
        times = interleaved(contestants, repeats=repeats)
        for row in times.itertuples():
            run.record("seconds", row.seconds, method=row.name, problem=problem, seed=row.repeat)
        wide = times.pivot(index="repeat", columns="name", values="seconds")
        if {"secondlook", "kronfluence"} <= set(wide):
            for repeat, ratio in (wide["kronfluence"] / wide["secondlook"]).items():
                run.record("speedup", ratio, method="secondlook", problem=problem, seed=repeat)


def workload(
    problem: str, width: int, examples: int, queries: int, device: str = "cpu"
) -> tuple[nn.Module, Batch, Batch]:
    """A freshly initialised network with training and query digits: as a vector, an image, or a sequence of 8 rows."""
    g = torch.Generator().manual_seed(0)
    data = datasets.load("digits")
    models: dict[str, Callable[[], nn.Module]] = {
        "mlp": lambda: mlp([64, width, width, 10]),
        "conv": lambda: nn.Sequential(
            nn.Conv2d(1, width // 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 8, width // 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * (width // 4), 10),
        ),
        "tokens": lambda: nn.Sequential(nn.Flatten(1, 2), *mlp([8, width, width, 10])[1:]),
    }
    if problem not in models:
        raise ValueError(f"unknown workload {problem!r}; choose one of {sorted(models)}")
    model = models[problem]()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / max(p[0].numel(), 1) ** 0.5)
    tokens = 8 if problem == "tokens" else 1

    def batch(x: Tensor, y: Tensor) -> Batch:
        y = y.unsqueeze(1).expand(-1, tokens).contiguous() if tokens > 1 else y
        return x.to(device), y.to(device)

    train = batch(data.train.x[:examples], data.train.y[:examples])
    return model.to(device).eval(), train, batch(data.test.x[:queries], data.test.y[:queries])


def our_scores(model: nn.Module, train: Batch, query: Batch) -> Tensor:
    """Fit on `train` and score, [Q, N]."""
    batches = _split(train, BATCH)
    return EKFACInfluence(model).fit(batches, targets="given").scores([query], batches)


def kronfluence_scores(
    model: nn.Module, train: Batch, query: Batch, strategy: str = "ekfac", batch_size: int = BATCH
) -> Tensor:
    """The same by kronfluence, [Q, N]: grad f^T (G + lambda)^{-1} grad L, without the minus sign."""
    from kronfluence.analyzer import prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.factor.config import FactorConfig
    from kronfluence.factor.covariance import fit_covariance_matrices_with_loader
    from kronfluence.factor.eigen import fit_lambda_matrices_with_loader, perform_eigendecomposition
    from kronfluence.score.pairwise import compute_pairwise_scores_with_loaders
    from kronfluence.task import Task
    from kronfluence.utils.state import State

    class SummedCrossEntropy(Task):
        def compute_train_loss(self, batch: Batch, model: nn.Module, sample: bool = False) -> Tensor:
            return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten(), reduction="sum")

        def compute_measurement(self, batch: Batch, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    dtype, task = train[0].dtype, SummedCrossEntropy()
    State._reset_state()  # it would keep the first device that it saw in this process
    state = State(cpu=train[0].device.type == "cpu")
    factor_args = FactorArguments(
        strategy=strategy,
        use_empirical_fisher=True,
        activation_covariance_dtype=dtype,
        gradient_covariance_dtype=dtype,
        per_sample_gradient_dtype=dtype,
        lambda_dtype=dtype,
    )
    score_args = ScoreArguments(
        damping_factor=None, score_dtype=dtype, per_sample_gradient_dtype=dtype, precondition_dtype=dtype
    )
    tracked = prepare_model(copy.deepcopy(model), task).to(train[0].device)  # which adds parameters
    loader = _Loader(train, batch_size)
    common = {"model": tracked, "state": state, "factor_args": factor_args, "disable_tqdm": True}
    config, factors = FactorConfig.CONFIGS[strategy], {}
    if config.requires_covariance_matrices:
        factors |= fit_covariance_matrices_with_loader(task=task, loader=loader, **common)[1]
    if config.requires_eigendecomposition:
        factors |= perform_eigendecomposition(covariance_factors=factors, **common)
    if config.requires_lambda_matrices:
        factors |= fit_lambda_matrices_with_loader(task=task, loader=loader, eigen_factors=factors, **common)[1]
    scores = compute_pairwise_scores_with_loaders(
        loaded_factors=factors,
        task=task,
        query_loader=_Loader(query, len(query[0])),
        per_device_query_batch_size=len(query[0]),
        train_loader=loader,
        score_args=score_args,
        tracked_module_names=None,
        **common,
    )
    return scores["all_modules"].to(train[0].device)


def _split(batch: Batch, size: int) -> list[Batch]:
    return list(zip(*(t.split(size) for t in batch), strict=True))


class _Loader(list):
    """Ready batches that also know their data set's length, as kronfluence asks."""

    def __init__(self, batch: Batch, size: int) -> None:
        super().__init__(_split(batch, size))
        self.dataset = batch[0]
        self.batch_size = size
