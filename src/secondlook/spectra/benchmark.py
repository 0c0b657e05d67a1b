"""The family's common protocol: matrix-free curvature of one network, beside curvlinops and PyHessian.

Every contestant gets the same trained-size network, the same points and, where chance enters, the same vectors, in one
process and alternating order; what it may prepare once (graphs, operators) is prepared before the clock starts. Five
workloads:

- `hvp`: one Hessian-vector product;
- `hvp-block`: the product with a block of vectors;
- `extreme`: the eigenvalues of largest magnitude, to the same tolerance (PyHessian's is on successive iterates);
- `trace`: Hutchinson's estimate from the same Rademacher probes;
- `density`: stochastic Lanczos quadrature from the same starting vectors, as many steps (the sum of absolute
  eigenvalues). curvlinops does not reorthogonalise, PyHessian once a step, we twice.

`disagreement` is the largest difference between a peer's answer and ours, relative to the largest of ours;
`dense_error` is the same against the dense Hessian in float64. A method of yours joins by `--method MODULE:FACTORY`:
`factory(model, loss, (x, y), params)` returns anything with `shape`, `dtype`, `device` and `@`, and all five workloads
run on it.
"""

import importlib
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secondlook.curvature import HessianOperator, eigsh, pack, probe_vectors, slq, trace, unpack
from secondlook.problems.models.convnets import digits_cnn
from secondlook.problems.models.mlp import mlp
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

METRICS: dict[str, dict] = {
    "seconds": {"label": "time", "unit": "s", "timing": True},
    "disagreement": {"label": "largest relative difference from ours", "unit": "1"},
    "dense_error": {"label": "relative error against the dense Hessian", "unit": "1"},
}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "points": 60,
        "hidden": 8,
        "channels": [4, 8],
        "block": 4,
        "top": 2,
        "probes": 3,
        "steps": 8,
        "repeats": 2,
    },
    "laptop": {
        "points": 150,
        "hidden": 32,
        "channels": [8, 16],
        "block": 16,
        "top": 3,
        "probes": 4,
        "steps": 15,
        "repeats": 5,
    },
    "gpu": {
        "points": 5000,
        "hidden": 512,
        "channels": [64, 128],
        "block": 32,
        "top": 10,
        "probes": 16,
        "steps": 60,
        "repeats": 7,
    },
}
DENSE_BELOW = 6000  # parameters: larger Hessians are not decomposed

Answer = Callable[[], Tensor]


@dataclass(frozen=True)
class Task:
    """One network with the vectors, `[n]` and `[n, k]`, that every contestant gets."""

    model: nn.Module
    x: Tensor
    y: Tensor
    vector: Tensor
    block: Tensor
    probes: Tensor  # Rademacher, for the trace
    starts: Tensor  # Gaussian, column k from seed k of the device's stream, for the density
    top: int
    steps: int
    tol: float = 1e-4

    @classmethod
    def draw(cls, model: nn.Module, x: Tensor, y: Tensor, block: int, probes: int, top: int, steps: int) -> "Task":
        n = sum(p.numel() for p in model.parameters())
        generator = torch.Generator().manual_seed(2)
        signs = probe_vectors(n, max(block, probes), generator=generator, dtype=x.dtype, device=x.device)
        streams = (torch.Generator(x.device).manual_seed(k) for k in range(probes))
        starts = torch.stack([torch.randn(n, generator=g, device=x.device) for g in streams], 1)
        v, V, Z = signs[:, 0].contiguous(), signs[:, :block].contiguous(), signs[:, :probes].contiguous()
        return cls(model, x, y, v, V, Z, starts, top, steps)


def benchmark(
    run: Run,
    *,
    method: str | None = None,
    points: int,
    hidden: int,
    channels: list[int],
    block: int,
    top: int,
    probes: int,
    steps: int,
    repeats: int,
) -> None:
    """Time every workload on a multilayer perceptron and on a convolutional network."""
    nets = {
        "mlp": mlp((64, hidden, 10), generator=torch.Generator().manual_seed(0)),
        "cnn": digits_cnn(channels, generator=torch.Generator().manual_seed(0)),
    }
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(points, 1, 8, 8, generator=generator).to(run.device)
    y = torch.randint(0, 10, (points,), generator=generator).to(run.device)
    for name, model in run.track(nets.items(), "networks", total=len(nets)):
        model.to(run.device).eval()
        task = Task.draw(model, x, y, block, probes, top, steps)
        n = len(task.vector)
        contestants = _contestants(run, method, task)
        exact = _exact(task) if n < DENSE_BELOW else {}
        for workload, entries in contestants.items():
            problem = f"{workload}: {name}, {n} parameters"
            ours = entries["secondlook"]()
            for peer, answer in entries.items():
                found = answer()
                gap = (found.to(ours) - ours).abs().max() / ours.abs().max()
                run.record("disagreement", gap, method=peer, problem=problem)
                if workload in exact:
                    truth = exact[workload]
                    error = (found.to(truth) - truth).abs().max() / truth.abs().max()
                    run.record("dense_error", error, method=peer, problem=problem)
            for row in interleaved(entries, repeats=repeats).itertuples():
                run.record("seconds", row.seconds, method=row.name, problem=problem, seed=row.repeat)


def _contestants(run: Run, method: str | None, t: Task) -> dict[str, dict[str, Answer]]:
    """For every workload the contestants by name, each a function that does the work and returns the answer."""
    work: dict[str, dict[str, Answer]] = {"hvp": {}, "hvp-block": {}, "extreme": {}, "trace": {}, "density": {}}

    def enter(name: str, A: Any) -> None:
        """An operator that multiplies with `[n]` and `[n, k]`, driven by this package's algorithms."""
        work["hvp"][name] = lambda: A @ t.vector
        work["hvp-block"][name] = lambda: A @ t.block
        work["extreme"][name] = lambda: (
            eigsh(A, t.top, which="magnitude", tol=t.tol, start=t.vector.unsqueeze(1)).values
        )
        work["trace"][name] = lambda: trace(A, t.probes).samples
        work["density"][name] = lambda: slq(A, t.steps, t.starts).trace(torch.abs).samples

    enter("secondlook", HessianOperator(t.model, F.cross_entropy, (t.x, t.y)))
    if method:
        module, _, factory = method.partition(":")
        if not factory:
            raise ValueError(f"a method is named MODULE:FACTORY, got {method!r}")
        build = getattr(importlib.import_module(module), factory)
        enter(method, build(t.model, F.cross_entropy, (t.x, t.y), list(t.model.parameters())))
    for peer, add in {"curvlinops": _curvlinops, "pyhessian": _pyhessian}.items():
        try:
            add(work, t)
        except ImportError:
            run.note(f"peer {peer} is not installed: pip install 'secondlook[peers]'")
    return work


def _curvlinops(work: dict[str, dict[str, Answer]], t: Task) -> None:
    """curvlinops' Hessian and its Lanczos; eigenvalues through SciPy's eigsh, as its documentation shows."""
    import numpy as np
    from curvlinops import HessianLinearOperator
    from curvlinops.papyan2020traces.spectrum import fast_lanczos
    from scipy.sparse.linalg import eigsh as arpack

    params = [p for p in t.model.parameters() if p.requires_grad]
    A = HessianLinearOperator(t.model, nn.CrossEntropyLoss(), params, [(t.x, t.y)], check_deterministic=False)
    S, start = A.to_scipy(), t.vector.cpu().numpy()

    def extreme() -> Tensor:
        values = arpack(S, k=t.top, which="LM", tol=t.tol, v0=start, return_eigenvectors=False)
        return _by_magnitude(torch.from_numpy(np.ascontiguousarray(values)))

    def density() -> Tensor:
        samples = []
        with _private_stream(t.x):
            for k in range(t.starts.shape[1]):
                torch.manual_seed(k)  # it draws its starting vector from the global stream: column k of `starts`
                nodes, s = fast_lanczos(A, t.steps)
                samples.append(len(t.vector) * (s[0] ** 2 * nodes.abs()).sum())
        return torch.stack(samples)

    work["hvp"]["curvlinops"] = lambda: A @ t.vector
    work["hvp-block"]["curvlinops"] = lambda: A @ t.block
    work["extreme"]["curvlinops"] = extreme
    work["trace"]["curvlinops"] = lambda: (t.probes * (A @ t.probes)).sum(0)
    work["density"]["curvlinops"] = density


def _pyhessian(work: dict[str, dict[str, Answer]], t: Task) -> None:
    """PyHessian's products on one batch (its graph kept), and its power iteration with deflation.

    Its `trace` and `density` draw their vectors from global state, and `density` calls `torch.eig`, which is gone; both
    loops are therefore run here on its product and its vector routines, with the vectors everybody gets.
    """
    from pyhessian import hessian as PyHessian
    from pyhessian.utils import group_add, group_product, hessian_vector_product, normalization, orthnormal

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it builds its graph through backward(), which PyTorch advises against
        H = PyHessian(t.model, nn.CrossEntropyLoss(), data=(t.x, t.y), cuda=t.x.is_cuda)
    t.model.zero_grad()

    def product(u: list[Tensor]) -> list[Tensor]:
        return list(hessian_vector_product(H.gradsH, H.params, u))

    def lists(columns: Tensor) -> list[list[Tensor]]:
        return [unpack(column.contiguous(), H.params) for column in columns.T]

    def extreme() -> Tensor:
        with _private_stream(t.x):
            torch.manual_seed(0)
            values, _ = H.eigenvalues(maxIter=300, tol=t.tol, top_n=t.top)
        return _by_magnitude(torch.tensor(values))

    def density() -> Tensor:
        samples = []
        for z in lists(t.starts):
            q = normalization(z)
            basis, alphas, betas, w = [q], [], [], None
            for j in range(t.steps):
                if j:
                    beta = torch.sqrt(group_product(w, w))
                    betas.append(float(beta))
                    basis.append(q := orthnormal(w, basis))
                w = [part.clone() for part in product(q)]
                alpha = group_product(w, q)
                alphas.append(float(alpha))
                w = group_add(w, q, alpha=-alpha)
                if j:
                    w = group_add(w, basis[-2], alpha=-beta)
            T = torch.diag(torch.tensor(alphas))
            T += torch.diag(torch.tensor(betas), 1) + torch.diag(torch.tensor(betas), -1)
            nodes, s = torch.linalg.eigh(T)
            samples.append(len(t.vector) * (s[0] ** 2 * nodes.abs()).sum())
        return torch.stack(samples)

    work["hvp"]["pyhessian"] = lambda: pack(product(unpack(t.vector, H.params)))
    work["hvp-block"]["pyhessian"] = lambda: torch.stack([pack(product(u)) for u in lists(t.block)], 1)
    work["trace"]["pyhessian"] = lambda: torch.stack([group_product(product(z), z) for z in lists(t.probes)])
    work["extreme"]["pyhessian"] = extreme
    work["density"]["pyhessian"] = density


def _private_stream(like: Tensor) -> AbstractContextManager[None]:
    """The global random stream as it was, once this is left."""
    return torch.random.fork_rng(devices=[like.device] if like.is_cuda else [])


def _by_magnitude(values: Tensor) -> Tensor:
    return values[values.abs().argsort(descending=True)]


def _exact(t: Task) -> dict[str, Tensor]:
    """What `extreme` and `density` should have answered, from the dense Hessian in float64."""
    model = deepcopy(t.model).double()
    values, vectors = torch.linalg.eigh(HessianOperator(model, F.cross_entropy, (t.x.double(), t.y)).dense())
    parts = (vectors.T @ t.starts.double()) ** 2
    shares = parts / parts.sum(0)
    return {"extreme": _by_magnitude(values)[: t.top], "density": len(values) * values.abs() @ shares}
