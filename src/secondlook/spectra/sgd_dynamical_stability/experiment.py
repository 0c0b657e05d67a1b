"""Where SGD and GD settle, what the second-moment theory allows, and what the trace says of the norm."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from secondlook.curvature import HessianOperator
from secondlook.problems import datasets
from secondlook.suite.runner import Run

from .method import (
    critical_learning_rate,
    diagonal_linear,
    interpolation_trace,
    output_gradients,
    sgd_stability_run,
    two_layer_relu,
)


def regression(kind: str, points: int, dim: int, nonzero: int, stream: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian points `[n, d]`, noiseless targets, and the weights: a few signs, or a dense vector."""
    generator = torch.Generator().manual_seed(stream)
    X = torch.randn(points, dim, generator=generator, dtype=torch.float64)
    if kind == "sparse":
        w = torch.zeros(dim, dtype=X.dtype)
        w[:nonzero] = torch.randint(2, (nonzero,), generator=generator).to(X.dtype) * 2 - 1
    else:
        w = torch.randn(dim, generator=generator, dtype=X.dtype)
        w *= nonzero**0.5 / w.norm()
    return X, X @ w, w


def minima(
    run: Run,
    *,
    dim: int,
    points: int,
    nonzero: int,
    scale: float,
    sgd: list[float],
    gd: list[float],
    steps: int,
    tol: float,
) -> None:
    """Diagonal linear networks on sparse and dense targets, settled by SGD with single samples and by GD."""
    rates = {"sgd": sgd, "gd": gd, "same-rate": [sgd[0]] * len(sgd)}
    problems = {
        (kind, seed): regression(kind, points, dim, nonzero, seed) for kind in ("sparse", "dense") for seed in run.seeds
    }
    for arm, etas in rates.items():
        kinds = ("sparse",) if arm == "same-rate" else ("sparse", "dense")
        members = [(kind, seed, i) for kind in kinds for seed in run.seeds for i in range(len(etas))]
        X, y = (torch.stack([problems[k, s][part] for k, s, _ in members]).to(run.device) for part in (0, 1))
        start = torch.full((len(members), dim), scale, dtype=X.dtype, device=X.device)
        found = sgd_stability_run(
            diagonal_linear,
            [start, start],
            X,
            y,
            torch.tensor([etas[i] for *_, i in members], dtype=X.dtype, device=X.device),
            batch=None if arm == "gd" else 1,
            steps=steps,
            tol=tol,
            generator=torch.Generator().manual_seed(1000 * (1 + list(rates).index(arm)) + run.seeds[0]),
        )
        edge: dict[tuple[str, int], dict[float, float]] = {}
        for i, (kind, seed, j) in enumerate(run.track(members, arm)):
            # The control's runs all have one rate and pretend to have those of the sweep.
            at = {"method": arm, "problem": kind, "seed": seed, "step": sgd[j] if arm == "same-rate" else etas[j]}
            settled = math.isfinite(found["trace"][i])
            run.record("settled", 100.0 * settled, **at)
            run.record("steps", found["steps"][i], **at)
            if not settled:
                continue
            u, v = (p[i] for p in found["params"])
            error = float(((u * u - v * v).cpu() - problems[kind, seed][2]).square().sum()) / nonzero
            edge.setdefault((kind, seed), {})[etas[j]] = error
            run.record("trace", found["trace"][i], **at)
            run.record("norm", u.square().sum() + v.square().sum(), **at)
            run.record("test_error", error, **at)
            run.record("scaled_trace", etas[j] * found["trace"][i], **at)
            run.record("scaled_top", etas[j] * found["lam_max"][i], **at)
            if arm != "same-rate" and kind == "sparse":
                allowed = critical_learning_rate(output_gradients(diagonal_linear, (u, v), X[i]))
                run.record("used", etas[j] / allowed, **at)
            if arm == "gd" and j == 0:  # the flattest step finds the flow's minimum, held against every rate
                for eta in gd:
                    flow = at | {"method": "flow", "step": eta}
                    run.record("scaled_top", eta * found["lam_max"][i], **flow)
        if arm == "sgd":
            last = {key: max(errors) for key, errors in edge.items()}
        for (kind, seed), errors in edge.items():
            if arm != "same-rate" and last.get((kind, seed)) in errors:
                at = {"method": arm, "problem": kind, "seed": seed}
                run.record("edge_error", errors[last[kind, seed]], **at)
                run.record("edge_rate", last[kind, seed], **at)


def theorem(run: Run, *, problems: int, dims: int, points: int, spread: float, batches: list[int]) -> None:
    """The exact largest stable learning rate of random interpolation problems, times their trace."""
    for seed in run.track(run.seeds, "seeds"):
        generator = torch.Generator().manual_seed(5000 + seed)
        for k in range(problems):
            d, n = (int(torch.randint(1, top + 1, (), generator=generator)) for top in (dims, points))
            A = torch.randn(n, d, generator=generator, dtype=torch.float64)
            lengths = torch.randn(n, 1, generator=generator, dtype=A.dtype)
            A *= torch.exp(spread * torch.rand((), generator=generator, dtype=A.dtype) * lengths)
            trace = A.square().sum(1).mean()
            allowed = {f"sgd, batch {b}": critical_learning_rate(A, b) for b in batches}
            allowed["gd"] = 2 * n / float(torch.linalg.matrix_norm(A, 2)) ** 2
            for method, eta in allowed.items():
                run.record("critical_trace", eta * trace, method=method, problem="random", seed=seed, step=k)


def equivalence(run: Run, *, dim: int, points: int, hidden: list[int], tail: float) -> None:
    """The trace of the Hessian against a parameter norm, for parameters with heavy tails and unequal layers."""
    for seed in run.track(run.seeds, "seeds"):
        generator = torch.Generator().manual_seed(9000 + seed)

        def draw(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        X = draw(points, dim)
        at = {"problem": "diagonal", "seed": seed, "step": dim}
        u, v = draw(dim), draw(dim)
        H = HessianOperator(
            diagonal_linear, lambda z, t: (z - t).square().mean() / 2, (X, diagonal_linear((u, v), X)), [u, v]
        )
        exact, squares = H.dense().trace(), u.square() + v.square()
        weighted = 4 * (X.square().mean(0) * squares).sum()
        run.record("trace_gap", (weighted - exact).abs() / exact, method="weighted norm", **at)
        run.record("trace_gap", (4 * squares.sum() - exact).abs() / exact, method="plain norm", **at)
        for m in hidden:
            at = {"problem": "relu", "seed": seed, "step": m}
            a = draw(m) * torch.exp(tail * draw(m))
            B = draw(m, dim) * torch.exp(tail * draw(m, 1)) / dim**0.5
            trace = interpolation_trace(two_layer_relu, (a, B), X)
            norm = (dim * a.square().sum() + B.square().sum()) / 2
            path = dim**0.5 * (a.abs() * B.norm(dim=1)).sum()
            run.record("octaves", abs(math.log2(trace / norm)), method="weighted norm", **at)
            run.record("octaves", abs(math.log2(trace / path)), method="path norm", **at)


def parity(name: str, points: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images of unit mean square length, odd classes +1 and even ones -1: training rows and test rows."""
    data = datasets.load(name)
    mean = data.train.x.flatten(1).double().mean(0)
    length = (data.train.x.flatten(1).double() - mean).square().sum(1).mean().sqrt()

    def part(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return ((x.flatten(1).double() - mean) / length).to(device), (2.0 * (y % 2) - 1).double().to(device)

    return *part(data.train.x[:points], data.train.y[:points]), *part(*data.test)


def images(
    run: Run,
    *,
    images: str,
    points: int,
    hidden: int,
    scale: float,
    factors: list[float],
    batches: Sequence[int],
    steps: int,
    tol: float,
) -> None:
    """A two-layer ReLU network on images, at multiples of the rate at which the initial trace is just allowed."""
    X, y, test, truth = parity(images, points, run.device)
    for seed in run.track(run.seeds, "seeds"):
        generator = torch.Generator().manual_seed(seed)
        a = (scale * torch.randn(hidden, generator=generator, dtype=X.dtype)).to(X.device)
        B = (scale * torch.randn(hidden, X.shape[1], generator=generator, dtype=X.dtype)).to(X.device)
        trace = interpolation_trace(two_layer_relu, (a, B), X)
        etas = torch.tensor([2 * f / trace for f in factors], dtype=X.dtype, device=X.device)
        for method, batch in {"gd": None, **{f"sgd, batch {b}": b for b in batches}}.items():
            found = sgd_stability_run(
                two_layer_relu,
                [p.expand(len(etas), *p.shape) for p in (a, B)],
                X.expand(len(etas), *X.shape),
                y.expand(len(etas), *y.shape),
                etas,
                batch=batch,
                steps=steps,
                tol=tol,
                generator=generator,
            )
            wrong = (two_layer_relu(found["params"], test) * truth <= 0).double().mean(1)
            for i, factor in enumerate(factors):
                at = {"method": method, "problem": images, "seed": seed, "step": factor}
                settled = math.isfinite(found["trace"][i])
                run.record("settled", 100.0 * settled, **at)
                if settled:
                    run.record("scaled_trace", etas[i] * found["trace"][i], **at)
                    run.record("scaled_top", etas[i] * found["lam_max"][i], **at)
                    run.record("misclassified", 100 * wrong[i], **at)
