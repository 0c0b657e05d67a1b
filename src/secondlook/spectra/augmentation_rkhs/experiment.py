"""Masking on the hypercube, where everything is known exactly, and masked pixels of digits."""

import torch
from torch import Tensor, nn

from secondlook.problems import datasets
from secondlook.problems.models.mlp import mlp
from secondlook.suite.runner import Run

from .method import (
    AugmentationOperator,
    hypercube,
    kernel_ridge,
    mask_eigenvalues,
    mask_table,
    masks,
    random_mask_kernel,
    spectral_contrastive_loss,
    top_d_probe,
)

KINDS = ("random", "fixed", "block")


def seeded(stream: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(stream)


def masking(kind: str, dim: int, alpha: float) -> tuple[AugmentationOperator, Tensor]:
    """The operator of masking on the uniform hypercube, and its views `[n_a, dim]`."""
    table, views = mask_table(*masks(kind, dim, alpha))
    return AugmentationOperator.from_table(table, torch.full((2**dim,), 0.5**dim, dtype=torch.float64)), views


def complexity(run: Run, *, dim: int, alphas: list[float]) -> None:
    """Complexity and spectrum from the explicit table of all inputs and views, against their closed forms."""
    for alpha in run.track(alphas, "mask ratios"):
        closed = {kind: mask_eigenvalues(*masks(kind, dim, alpha)) for kind in KINDS}
        for kind in KINDS:
            operator, _ = masking(kind, dim, alpha)
            eigenvalues, kappa2 = operator.spectrum()[0], operator.complexity()
            at = {"problem": f"{dim} coordinates", "step": alpha}
            run.record("complexity", kappa2, method=kind, **at)
            run.record_series(
                "eigenvalue", eigenvalues, steps=range(1, 2**dim + 1), method=kind, problem=f"ratio {alpha:g}"
            )
            # The wrong formula, for the control: that of masks of a fixed size where they are independent, and back.
            for method, formula in {kind: kind, f"{kind}-swapped": "fixed" if kind == "random" else "random"}.items():
                expected = closed[formula]
                gap = max(abs(kappa2 / float(expected.sum()) - 1), float((eigenvalues - expected).abs().max()))
                run.record("closed_form_error", gap, method=method, **at)


TARGETS = {  # coefficients of parities
    "mixed": {(0, 1): 1.0, (2,): 0.5, (3, 4, 5): 0.5},
    "linear": {(0,): 1.0, (2,): 0.5, (4,): 0.5},
}


def target(x: Tensor, kind: str) -> Tensor:
    return sum(c * x[:, list(places)].prod(1) for places, c in TARGETS[kind].items())


def ratio(
    run: Run, *, dim: int, labels: int, noise: float, alphas: list[float], draws: int, log_ridges: list[float]
) -> None:
    """Regression in the space of each mask ratio, the ridge chosen by leave-one-out error on the noisy labels.

    The best ratio is chosen on half of the draws of a seed and looked at on the others, so that choosing costs nothing.
    """
    x = hypercube(dim)
    ridges = torch.logspace(*log_ridges[:2], int(log_ridges[2]), dtype=torch.float64)
    kernels = {alpha: random_mask_kernel(x, x, alpha) for alpha in alphas}
    for seed in run.track(run.seeds, "seeds"):
        generator = seeded(seed)
        picks = [torch.randperm(len(x), generator=generator)[:labels] for _ in range(2 * draws)]
        noises = [noise * torch.randn(labels, generator=generator, dtype=torch.float64) for _ in picks]
        for kind in TARGETS:
            truth, at = target(x, kind), {"method": kind, "problem": "hypercube", "seed": seed}
            errors = []  # ratio by draw
            for K in kernels.values():
                row = []
                for rows, error in zip(picks, noises, strict=True):
                    dual, _ = kernel_ridge(K[rows][:, rows], truth[rows] + error, ridges)
                    row.append(float((K[:, rows] @ dual - truth).square().mean()))
                errors.append(row)
            table = torch.tensor(errors, dtype=torch.float64)
            run.record_series("mse", table.mean(1), steps=alphas, **at)
            chosen, judged = table[:, :draws].mean(1), table[:, draws:].mean(1)
            best = int(chosen.argmin())
            run.record("best_ratio", alphas[best], **at)
            run.record("end_over_best", min(judged[0], judged[-1]) / judged[best], **at)


def encoders(run: Run, *, dim: int, alpha: float, d: int, count: int, power: float) -> None:
    """The worst error of encoders on the unit ball of the space: top eigenfunctions against others.

    Half of the encoders span random eigenfunctions. The others span random functions of views after some steps of
    power iteration with Gamma Gamma*, from none (random) to `power` (nearly the top eigenspace).
    """
    operator, _ = masking("random", dim, alpha)
    eigenvalues, psi = operator.spectrum()
    phi = operator.lift(psi) / eigenvalues.sqrt()  # eigenfunctions on views
    top = float(eigenvalues[:d].sum())
    for seed in run.track(run.seeds, "seeds"):
        generator = seeded(seed)
        drawn = []
        for i in range(count):
            if i % 2:
                drawn.append(phi[:, torch.randperm(phi.shape[1], generator=generator)[:d]])
            else:
                p = power * float(torch.rand((), generator=generator))
                mix = torch.randn(phi.shape[1], d, generator=generator, dtype=torch.float64)
                drawn.append(phi @ (eigenvalues.unsqueeze(1) ** p * mix))
        errors = [operator.approximation_error(operator.average(f)) for f in drawn]
        gaps = [top - operator.ratio_trace(f) for f in drawn]
        other = torch.randperm(count, generator=generator).tolist()
        at = {"problem": f"{dim} coordinates", "seed": seed}
        run.record_series("worst_error", errors, steps=range(count), method="encoder", **at)
        run.record_series("worst_error", [errors[i] for i in other], steps=range(count), method="another", **at)
        run.record_series("trace_gap", gaps, steps=range(count), method="encoder", **at)
        for method, first in {"top": 0, "next": 1}.items():  # the control lacks the first eigenfunction
            margin = min(errors) - operator.approximation_error(psi[:, first : first + d])
            run.record("margin", margin, method=method, **at)


def sizes(run: Run, *, dim: int, alpha: float, d: int, widths: list[int], labels: int, noise: float) -> None:
    """Probes on ReLU networks of very different width that realise the same span, and on one too narrow for it."""
    operator, _ = masking("random", dim, alpha)
    eigenvalues, psi = operator.spectrum()
    phi = operator.lift(psi[:, :d]) / eigenvalues[:d].sqrt()
    x = hypercube(dim)
    truth = target(x, "mixed")

    def network(width: int, generator: torch.Generator) -> Tensor:
        """Outputs on all views of a network phi -> ReLU(+-R phi) -> mixed: relu(u) - relu(-u) = u undoes the ReLU."""
        R = torch.randn(width // 2, d, generator=generator, dtype=torch.float64)
        mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
        hidden = phi @ R.T
        return (hidden.relu() - (-hidden).relu()) @ torch.linalg.pinv(R).T @ mix

    for seed in run.track(run.seeds, "seeds"):
        generator = seeded(seed)
        rows = torch.randperm(len(x), generator=generator)[:labels]
        y = truth[rows] + noise * torch.randn(labels, generator=generator, dtype=torch.float64)

        def error(features: Tensor, rows: Tensor = rows, y: Tensor = y) -> float:
            return float((top_d_probe(features, d, rows, y) - truth).square().mean())

        direct = error(psi)
        for width in widths:
            found, at = (
                error(operator.average(network(width, generator))),
                {"problem": f"{dim} coordinates", "seed": seed},
            )
            run.record("probe_error", found, method="wide-enough", step=2 * d * width, **at)
            run.record("error_gap", abs(found - direct), method="wide-enough", step=2 * d * width, **at)
        narrow = error(operator.average(network(d, generator)))
        run.record("error_gap", abs(narrow - direct), method="too-narrow", step=2 * d * d, **at)


def pretrain(encoder: nn.Module, x: Tensor, alpha: float, *, steps: int, batch: int, lr: float, generator) -> None:
    """Minimise the spectral contrastive loss on pairs of masked views of the rows of `x`."""
    optimizer = torch.optim.Adam(encoder.parameters(), lr)
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,), generator=generator, device=x.device)
        loss = spectral_contrastive_loss(*(encoder(masked(x[rows], alpha, generator)) for _ in range(2)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def masked(x: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Every entry is 0 with probability alpha."""
    return x * (torch.rand(x.shape, generator=generator, device=x.device) >= alpha)


def pretraining(
    run: Run, *, dim: int, alpha: float, d: int, hidden: int, looks: list[int], batch: int, lr: float
) -> None:
    """How much of the top-d eigenspace a network finds by contrastive pre-training on masked views."""
    operator, views = masking("random", dim, alpha)
    top = float(operator.spectrum()[0][:d].sum())
    x = hypercube(dim).float()
    for seed in run.track(run.seeds, "seeds"):
        generator = seeded(1000 + seed)
        encoder = mlp((dim, hidden, hidden, d), generator=seeded(seed))
        at, done = {"problem": f"{dim} coordinates", "seed": seed}, 0
        for step in looks:
            pretrain(encoder, x, alpha, steps=step - done, batch=batch, lr=lr, generator=generator)
            done = step
            with torch.no_grad():
                share = operator.ratio_trace(encoder(views.float())) / top
            run.record("captured", 100 * share, method="network", step=step, **at)


def images(
    run: Run,
    *,
    data: str,
    alphas: list[float],
    hidden: int,
    d: int,
    steps: int,
    batch: int,
    lr: float,
    labels: int,
    views: int,
    held_out: int,
    log_ridges: list[float],
) -> None:
    """Linear probes on networks pre-trained with masked black-and-white images, for each mask ratio.

    Encoders are averaged over views before the probe. The probe's ridge is chosen by leave-one-out error, the best
    ratio on validation images. `untrained` are networks as they start, each ratio with weights of its own.
    """
    parts = datasets.load(data).to(run.device)
    binary = parts.map(lambda split: datasets.Split(2 * (split.x.flatten(1) > 0.5).float() - 1, split.y))
    ridges = torch.logspace(*log_ridges[:2], int(log_ridges[2]), dtype=torch.float64)
    x = binary.train.x
    for seed in run.track(run.seeds, "seeds"):
        rows = torch.randperm(len(x), generator=seeded(seed))[:labels].to(x.device)
        onehot = nn.functional.one_hot(binary.train.y[rows], binary.classes).double()
        for method in ("trained", "untrained"):
            errors: dict[str, list[float]] = {"val": [], "test": []}
            for i, alpha in enumerate(alphas):
                stream = 1000 * seed + (i + 1 if method == "untrained" else 0)
                encoder = mlp((x.shape[1], hidden, d), generator=seeded(stream)).to(run.device)
                generator = seeded(stream, run.device)
                if method == "trained":
                    pretrain(encoder, x, alpha, steps=steps, batch=min(batch, len(x)), lr=lr, generator=generator)

                def features(inputs: Tensor, net: nn.Module = encoder, a: float = alpha, g=generator) -> Tensor:
                    with torch.no_grad():
                        mean = sum(net(masked(inputs, a, g)) for _ in range(views)) / views
                    return torch.cat([mean, torch.ones_like(mean[:, :1])], 1).double()

                train = features(x[rows])
                scale = train.square().mean()
                dual, _ = kernel_ridge(train @ train.T / scale, onehot, ridges)
                weights = train.T @ dual / scale
                for part, found in errors.items():
                    inputs, y = (t[:held_out] for t in getattr(binary, part))
                    found.append(100 * float(((features(inputs) @ weights).argmax(1) != y).double().mean()))
            at = {"method": method, "problem": data, "seed": seed}
            run.record_series("test_error", errors["test"], steps=alphas, **at)
            best = min(range(len(alphas)), key=errors["val"].__getitem__)
            run.record("best_ratio", alphas[best], **at)
            ends = min(errors["test"][0], errors["test"][-1])
            run.record("end_over_best", ends / max(errors["test"][best], 1e-9), **at)
