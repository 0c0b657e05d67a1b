"""Bare workloads: the same vectors for every contestant, so that only the speed of its products and loops differs.

What may be prepared once (graphs, operators) is prepared before the clock starts; order alternates.

- `hvp`: one Hessian-vector product;
- `hvp-block`: the product with a block of vectors;
- `extreme`: the eigenvalues of largest magnitude, to the same tolerance (PyHessian's is on successive iterates);
- `trace`: Hutchinson's estimates from the same Rademacher probes;
- `density`: stochastic Lanczos quadrature from the same starting vectors, as many steps (the sum of absolute
  eigenvalues). curvlinops does not reorthogonalise, PyHessian once a step, we twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.curvature import eigsh, pack, probe_vectors, slq, trace, unpack
from secondlook.spectra.bench.contestants import built, operator
from secondlook.spectra.bench.networks import Network
from secondlook.spectra.bench.peers import private_stream
from secondlook.suite import floors
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

__all__ = ["ALONE", "Task", "workloads"]

ALONE = ("hvp", "hvp-block")  # the products themselves

Answer = Callable[[], Tensor]


@dataclass(frozen=True)
class Task:
    """One network with the vectors, `[n]` and `[n, k]`, that every contestant gets."""

    network: Network
    vector: Tensor
    block: Tensor
    probes: Tensor  # Rademacher, for the trace
    starts: Tensor  # Gaussian, column k from seed k of the device's stream, for the quadrature
    top: int
    steps: int
    tol: float = 1e-4

    @classmethod
    def draw(cls, network: Network, block: int, probes: int, top: int, steps: int) -> Task:
        n, x = network.size, network.x
        generator = torch.Generator().manual_seed(2)
        signs = probe_vectors(n, max(block, probes), generator=generator, dtype=x.dtype, device=x.device)
        streams = (torch.Generator(x.device).manual_seed(k) for k in range(probes))
        starts = torch.stack([torch.randn(n, generator=g, device=x.device) for g in streams], 1)
        v, V, Z = signs[:, 0].contiguous(), signs[:, :block].contiguous(), signs[:, :probes].contiguous()
        return cls(network, v, V, Z, starts, top, steps)


def workloads(
    run: Run, t: Task, method: str | None, *, repeats: int, only: tuple[str, ...] = (), exact: Tensor | None = None
) -> None:
    """Time every workload, or `only` some, and compare the answers; `exact` are all eigenvalues, where known."""
    for workload, entries in _contestants(method, t).items():
        if only and workload not in only:
            continue
        problem = f"{workload}: {t.network.title}"
        ours = entries["secondlook"]()
        for peer, answer in entries.items():
            found = answer()
            gap = (found.to(ours) - ours).abs().max() / ours.abs().max()
            run.record("disagreement", gap, method=peer, problem=problem)
            if workload == "extreme" and exact is not None:
                truth = _by_magnitude(exact)[: t.top]
                error = (found.to(truth) - truth).abs().max() / truth.abs().max()
                run.record("dense_error", error, method=peer, problem=problem)
        for row in interleaved(entries, repeats=repeats).itertuples():
            run.record("seconds", row.seconds, method=row.name, problem=problem, seed=row.repeat)
        if workload in ALONE:
            floors.record(run, entries["secondlook"], method="secondlook", problem=problem)


def _contestants(method: str | None, t: Task) -> dict[str, dict[str, Answer]]:
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

    enter("secondlook", operator(t.network))
    if method:
        enter(method, built(t.network, method))
    for add in (_curvlinops, _pyhessian):
        try:
            add(work, t)
        except ImportError:
            continue  # the contest has noted it
    return work


def _curvlinops(work: dict[str, dict[str, Answer]], t: Task) -> None:
    """curvlinops' Hessian and its Lanczos; eigenvalues through SciPy's eigsh, as its documentation shows."""
    import numpy as np
    from curvlinops import HessianLinearOperator
    from curvlinops.papyan2020traces.spectrum import fast_lanczos
    from scipy.sparse.linalg import eigsh as arpack

    net = t.network
    params = [p for p in net.model.parameters() if p.requires_grad]
    A = HessianLinearOperator(net.model, nn.CrossEntropyLoss(), params, [(net.x, net.y)], check_deterministic=False)
    S, start = A.to_scipy(), t.vector.cpu().numpy()

    def extreme() -> Tensor:
        values = arpack(S, k=t.top, which="LM", tol=t.tol, v0=start, return_eigenvectors=False)
        return _by_magnitude(torch.from_numpy(np.ascontiguousarray(values)))

    def density() -> Tensor:
        samples = []
        for k in range(t.starts.shape[1]):
            with private_stream(net.x, k):  # it draws its starting vector there: column k of `starts`
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

    Its `trace` and `density` draw their own vectors; both loops are therefore run here on its product and its vector
    routines, with the vectors everybody gets.
    """
    from pyhessian import hessian as PyHessian
    from pyhessian.utils import group_add, group_product, hessian_vector_product, normalization, orthnormal

    net = t.network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it builds its graph through backward(), which PyTorch advises against
        H = PyHessian(net.model, nn.CrossEntropyLoss(), data=(net.x, net.y), cuda=net.x.is_cuda)
    net.model.zero_grad()

    def product(u: list[Tensor]) -> list[Tensor]:
        return list(hessian_vector_product(H.gradsH, H.params, u))

    def lists(columns: Tensor) -> list[list[Tensor]]:
        return [unpack(column.contiguous(), H.params) for column in columns.T]

    def extreme() -> Tensor:
        with private_stream(net.x, 0):
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


def _by_magnitude(values: Tensor) -> Tensor:
    return values[values.abs().argsort(descending=True)]
