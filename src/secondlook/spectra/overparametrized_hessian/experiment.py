"""Exact spectra of small networks as they grow, as their data change, and between their solutions."""

import math
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secondlook.curvature import HessianOperator, slq
from secondlook.problems import datasets, zoo
from secondlook.problems.models.convnets import convnet
from secondlook.problems.models.mlp import mlp
from secondlook.problems.training import accuracy, cross_entropy, fit, minibatches
from secondlook.suite.runner import Run

from .method import barrier, bulk_and_outliers, descend, full_hessian, gauss_newton, segment_loss

RANKS = 60  # points of a sorted spectrum that are kept for the figures

Points = tuple[Tensor, Tensor]


def two_layer(params: Sequence[Tensor], x: Tensor) -> Tensor:
    """A ReLU network with one hidden layer, or a stack of them: weights `[..., out, in]`, points `[..., N, in]`."""
    W1, b1, W2, b2 = params
    return torch.relu(x @ W1.mT + b1.unsqueeze(-2)) @ W2.mT + b2.unsqueeze(-2)


def losses(params: Sequence[Tensor], data: Points) -> Tensor:
    """Mean cross-entropy of every network of a stack on its own points, `[S]`."""
    x, y = data
    z = two_layer(params, x)
    return F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="none").view(len(x), -1).mean(1)


def start(sizes: Sequence[int], stream: int) -> list[Tensor]:
    """Untrained parameters."""
    return [p.detach() for p in mlp(sizes, generator=torch.Generator().manual_seed(stream)).parameters()]


def blobs(n: int, k: int, dim: int, std: float, spread: float, stream: int) -> Points:
    """Gaussian clusters with a total variance of one per coordinate, on average."""
    x, y = datasets.clusters(n, k, dim, std, spread, torch.Generator().manual_seed(stream))
    return x / (std**2 + spread**2) ** 0.5, y


def principal(name: str, components: int) -> Points:
    """The training images of a data set in their leading principal components, scaled to a mean variance of one."""
    x, y = datasets.load(name).train
    x = x.flatten(1).double()
    x = x - x.mean(0)
    _, directions = torch.linalg.eigh(x.T @ x)
    x = x @ directions[:, -components:]
    return (x / x.square().mean().sqrt()).float(), y


def subset(pool: Points, points: int, stream: int) -> Points:
    """`points` of the pool, drawn without replacement."""
    if points > len(pool[0]):
        raise ValueError(f"cannot draw {points} of {len(pool[0])} points: take fewer, or more classes")
    chosen = torch.randperm(len(pool[0]), generator=torch.Generator().manual_seed(stream))[:points]
    return pool[0][chosen], pool[1][chosen]


def train(starts: list[list[Tensor]], data: list[Points], device: str, **rule: float) -> tuple[list, Tensor, Tensor]:
    """Descend from every start on its own data, all at once; parameters and data come back in float64."""
    stacked = [torch.stack(p).to(device) for p in zip(*starts, strict=True)]
    x, y = (torch.stack(part).to(device) for part in zip(*data, strict=True))
    final, norms, steps = descend(losses, stacked, (x, y), **rule)
    nets = [([p[i].double() for p in final], x[i].double(), y[i]) for i in range(len(x))]
    return nets, norms, steps


def exact_hessian(net: tuple[list[Tensor], Tensor, Tensor]) -> Tensor:
    """The exact Hessian of one trained network."""
    params, x, y = net
    return full_hessian(two_layer, x, y, params=params)


def relative_gap(of: Tensor, to: Tensor, top: int) -> Tensor:
    """|of_j - to_j| / to_j for the `top` largest eigenvalues, `[top]`."""
    a, b = of.flip(0)[:top], to.flip(0)[:top]
    return (a - b).abs() / b


def record(run: Run, eigenvalues: Tensor, **at: object) -> None:
    """What the counting rules say of one spectrum."""
    found, by_trace = bulk_and_outliers(eigenvalues), bulk_and_outliers(eigenvalues, "trace90")
    run.record("outliers", found.outliers, **at)
    run.record("outliers_trace90", by_trace.outliers, **at)
    run.record("near_zero", 100 * found.bulk_fraction, **at)
    run.record("bulk_median", eigenvalues.abs().median(), **at)


def record_sorted(run: Run, eigenvalues: Tensor, *, method: str, problem: str, seed: int) -> None:
    """The spectrum in ascending order at `RANKS` places, by rank counted from the largest (0)."""
    n = len(eigenvalues)
    ranks = torch.unique(torch.cat([torch.arange(min(n, 25)), torch.linspace(0, n - 1, RANKS).round().long()]))
    values = eigenvalues.flip(0)[ranks.to(eigenvalues.device)]
    run.record_series("eigenvalue", values, steps=ranks.tolist(), method=method, problem=problem, seed=seed)


def spectrum(run: Run, *, images: int, steps: int, coarse: int, probes: int, width: float, points: int) -> None:
    """Stochastic Lanczos quadrature beside the exact spectrum of a trained reference network."""
    data = datasets.load("digits").to(run.device).train
    x, y = data.x[:images].double(), data.y[:images]
    for seed in run.track(run.seeds, "seeds"):
        model = zoo.load("digits-mlp", seed, root=run.results, device=run.device).double()
        H = HessianOperator(model, F.cross_entropy, (x, y))
        exact = torch.linalg.eigvalsh(H.dense())
        top, at = exact[-1], {"problem": "digits-mlp", "seed": seed}
        # A grid that is linear near zero and logarithmic beyond; both curves are smoothed by `width` of the largest
        # eigenvalue, the size at which the paper's bulk is told from zero.
        share = torch.linspace(-3, math.asinh(1.2 / width), points, dtype=exact.dtype, device=exact.device)
        share = width * torch.sinh(share)
        grid, smooth = share * top, width * float(top)
        truth = torch.special.ndtr((grid - exact.unsqueeze(1)) / smooth).mean(0)
        record_sorted(run, exact, method="exact", **at)
        run.record_series("cumulative", 100 * truth, steps=share.tolist(), method="exact", **at)
        for name, m in {"slq": steps, "slq-coarse": coarse}.items():
            found = slq(H, m, probes, generator=torch.Generator().manual_seed(1000 + seed))
            estimate = found.cumulative(grid, smooth)
            low, high = estimate.interval(0.95)
            run.record_series("cumulative", 100 * estimate.value, steps=share.tolist(), method=name, **at)
            run.record("cumulative_gap", 100 * (estimate.value - truth).abs().max(), method=name, **at)
            run.record("coverage", 100 * ((low <= truth) & (truth <= high)).double().mean(), method=name, **at)


def width(
    run: Run,
    *,
    hidden: list[int],
    points: int,
    clusters: int,
    dim: int,
    std: float,
    spread: float,
    images: str,
    image_points: int,
    components: int,
    few: int,
    lr: float,
    tol: float,
    max_steps: int,
) -> None:
    """Spectra of H, G and R as the hidden layer grows on fixed data: clusters, and images in principal components."""
    pool = principal(images, components)
    some = tuple(part[pool[1] < few] for part in pool)
    problems = {  # inputs, outputs, the fixed data of each seed, and other data for the control
        "clusters": (
            dim,
            clusters,
            [blobs(points, clusters, dim, std, spread, s) for s in run.seeds],
            [blobs(points, clusters, dim, std, spread, 7000 + s) for s in run.seeds],
        ),
        images: (
            components,
            int(pool[1].max()) + 1,
            [subset(pool, image_points, s) for s in run.seeds],
            [subset(some, image_points, s) for s in run.seeds],
        ),
    }
    rule = {"lr": lr, "tol": tol, "max_steps": max_steps}
    for problem, (inputs, outputs, fixed, other) in problems.items():
        top = outputs
        narrow: dict[int, Tensor] = {}
        for h in run.track(hidden, f"{problem}: widths"):
            starts = [start((inputs, h, outputs), 100 + s) for s in run.seeds]
            nets, norms, steps = train(starts, fixed, run.device, **rule)
            for i, seed in enumerate(run.seeds):
                at = {"method": "trained", "problem": problem, "seed": seed, "step": h}
                params, x, y = nets[i]
                H, G = exact_hessian(nets[i]), gauss_newton(two_layer, x, y, params=params)
                eigs, eigs_g, eigs_r = (torch.linalg.eigvalsh(A) for A in (H, G, H - G))
                narrow.setdefault(seed, eigs)
                record(run, eigs, **at)
                record_sorted(run, eigs, method=f"h = {h}", problem=problem, seed=seed)
                run.record("gradient_norm", norms[i], **at)
                run.record("steps", steps[i], **at)
                run.record("top_eigenvalue", eigs[-1], **at)
                run.record("top_change", relative_gap(eigs, narrow[seed], top).median(), **at)
                run.record("gn_gap", 100 * relative_gap(eigs_g, eigs, top).max(), **at)
                run.record("gn_gap", 100 * relative_gap(eigs_r, eigs, top).max(), **at | {"method": "residual-term"})
                if h == hidden[-1]:
                    record_sorted(run, eigs_g, method="G", problem=problem, seed=seed)
                    record_sorted(run, eigs_r, method="R", problem=problem, seed=seed)

        # Controls at the smallest width, trained in one go: other data, and copies that pretend to have grown.
        sizes, copies = (inputs, hidden[0], outputs), len(hidden)
        starts = [start(sizes, 1000 * (c + 1) + s) for c in range(copies + 1) for s in run.seeds]
        nets, _, _ = train(starts, fixed * copies + other, run.device, **rule)
        for i, (net, copy) in enumerate(zip(nets, [c for c in range(copies + 1) for _ in run.seeds], strict=True)):
            seed = run.seeds[i % len(run.seeds)]
            at = {"problem": problem, "seed": seed}
            eigs = torch.linalg.eigvalsh(exact_hessian(net))
            if copy < copies:
                record(run, eigs, method="same-width", step=hidden[copy], **at)
                continue
            params, x, y = net
            eigs_g = torch.linalg.eigvalsh(gauss_newton(two_layer, x, y, params=params))
            at |= {"method": "other-data", "step": hidden[0]}
            run.record("top_change", relative_gap(eigs, narrow[seed], top).median(), **at)
            run.record("gn_gap", 100 * relative_gap(eigs_g, narrow[seed], top).max(), **at)


def data(
    run: Run,
    *,
    clusters: list[int],
    hidden: int,
    wide: int,
    points: int,
    dim: int,
    std: float,
    spread: float,
    lr: float,
    tol: float,
    max_steps: int,
) -> None:
    """Spectra of one and the same network as the number of clusters in its data grows."""
    rule = {"lr": lr, "tol": tol, "max_steps": max_steps}
    first, outputs = clusters[0], max(clusters)
    arms = {  # method: (width, clusters, first stream, step to record at)
        "trained": [(hidden, k, 0, k) for k in clusters],
        "same-clusters": [(hidden, first, 3000 + 100 * k, k) for k in clusters],
        "wider": [(wide, first, 0, clusters[-1])],
    }
    for method, sweep in arms.items():
        members = [(h, k, stream + s, step, s) for h, k, stream, step in sweep for s in run.seeds]
        starts = [start((dim, h, outputs), 100 + stream) for h, _, stream, _, _ in members]
        drawn = [blobs(points, k, dim, std, spread, stream) for _, k, stream, _, _ in members]
        nets, norms, steps = train(starts, drawn, run.device, **rule)
        for i, (_, k, _, step, seed) in enumerate(run.track(members, f"{method}: spectra")):
            at = {"method": method, "problem": "clusters", "seed": seed, "step": step}
            eigs = torch.linalg.eigvalsh(exact_hessian(nets[i]))
            if method == "trained":
                record_sorted(run, eigs, method=f"k = {k}", problem="clusters", seed=seed)
            record(run, eigs, **at)
            run.record("gradient_norm", norms[i], **at)
            run.record("steps", steps[i], **at)


def segment(
    run: Run, *, images: str, network: list[int], batch: dict[str, int], lr: float, steps: int, points: int
) -> None:
    """The loss on straight lines between solutions of large and of small batches."""
    data = datasets.load(images).to(run.device)

    def fresh(stream: int) -> nn.Module:
        generator = torch.Generator().manual_seed(stream)
        shape = tuple(data.train.x.shape[1:])
        if shape[0] == 1:
            return mlp((data.train.x[0].numel(), *network, data.classes), generator=generator).to(run.device)
        return convnet(shape, network, data.classes, generator=generator).to(run.device)

    def solve(model: nn.Module, size: int, stream: int) -> nn.Module:
        order = torch.Generator().manual_seed(stream)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        fit(model, optimizer, minibatches(*data.train, size, order), cross_entropy, steps=steps)
        return model.eval()

    def loss(model: nn.Module) -> Tensor:
        x, y = data.train
        parts = zip(x.split(2048), y.split(2048), strict=True)
        return sum(F.cross_entropy(model(a), b, reduction="sum") for a, b in parts) / len(y)

    for seed in run.track(run.seeds, "seeds"):
        at = {"problem": images, "seed": seed}
        initial = fresh(seed)
        with torch.no_grad():
            first = float(loss(initial))
        large = solve(deepcopy(initial), batch["large"], 10 * seed)
        ends = {
            "continued": solve(deepcopy(large), batch["small"], 10 * seed + 1),
            "same-start": solve(deepcopy(initial), batch["small"], 10 * seed + 2),
            "other-start": solve(fresh(500 + seed), batch["small"], 10 * seed + 3),
        }
        run.record("test_accuracy", accuracy(large, *data.test), method="large-batch", **at)
        for method, end in ends.items():
            on_line = segment_loss(large.state_dict(), end.state_dict(), deepcopy(large), loss, points)
            where = [i / (points - 1) for i in range(points)]
            run.record_series("segment_loss", on_line, steps=where, method=method, **at)
            run.record("barrier", 100 * barrier(on_line) / first, method=method, **at)
            run.record("test_accuracy", accuracy(end, *data.test), method=method, **at)
