r"""Kronecker-factored curvature with re-estimated eigenvalues (EK-FAC), one block a layer.

A linear or convolutional layer computes `W a` on homogeneous inputs `a` (a 1 appended when it has a bias).
With `d` the gradient with respect to the layer's output, the gradient of example n is the matrix

    D_n = sum_t d_nt a_nt^T          (out x in; t runs over tokens, or over the patches of a convolution)

and the layer's curvature E[vec(D) vec(D)^T] is approximated in a Kronecker-factored eigenbasis:

    A = E_nt[a a^T] = Q_A diag Q_A^T,    S = E_nt[d d^T] = Q_S diag Q_S^T
    K-FAC    Lambda_ij = eig(S)_i eig(A)_j            (Martens & Grosse, arXiv:1503.05671)
    EK-FAC   Lambda_ij = E_n[(Q_S^T D_n Q_A)_ij^2]    (George et al., arXiv:1806.03884)

A and S are means over tokens, Lambda of EK-FAC is a mean over examples: tokens are summed *before* squaring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Strategy = Literal["ekfac", "kfac", "diagonal", "identity"]
STRATEGIES: tuple[Strategy, ...] = ("ekfac", "kfac", "diagonal", "identity")
Layer = nn.Linear | nn.Conv2d
Objective = Callable[[nn.Module, Any], Tensor]  # (model, batch) -> summed loss, 0-d

_CHUNK = 1 << 22  # entries of the largest temporary, 16 MB in float32


def linear_layers(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Layer]:
    """Layers that can be factored, by name: every Linear and ungrouped Conv2d, or those in `names`."""
    modules = dict(model.named_modules())
    if names is None:
        found = {n: m for n, m in modules.items() if isinstance(m, Layer)}
        found = {n: m for n, m in found.items() if getattr(m, "groups", 1) == 1}
        if not found:
            raise ValueError("the model has no Linear or ungrouped Conv2d layer to put Kronecker factors on")
        return found
    found = {}
    for name in names:
        if name not in modules:
            raise ValueError(f"no layer {name!r}; the model has {[n for n in modules if n]}")
        if not isinstance(modules[name], Layer):
            kind = type(modules[name]).__name__
            raise TypeError(f"layer {name!r} is a {kind}; only Linear and Conv2d can be factored")
        if getattr(modules[name], "groups", 1) != 1:
            raise ValueError(f"layer {name!r} is a grouped convolution; leave it out of `layers`")
        found[name] = modules[name]
    if not found:
        raise ValueError("layers is empty; name at least one layer, or pass None for all")
    return found


class Pairs(NamedTuple):
    """Gradients of N examples in factored form: D_n = sum_t d[n, t] a[n, t]^T."""

    a: Tensor  # [N, T, in], homogeneous
    d: Tensor  # [N, T, out]

    def gradients(self) -> Tensor:
        """The per-example gradients themselves, [N, out, in]."""
        if self.a.shape[1] == 1:
            return self.d.transpose(1, 2) * self.a
        return torch.bmm(self.d.transpose(1, 2), self.a)

    def chunks(self, entries: int) -> Iterator[Pairs]:
        """The same examples in pieces, so that `entries` numbers per example stay within a fixed budget."""
        rows = max(1, _CHUNK // max(entries, 1))
        for start in range(0, len(self.a), rows):
            yield Pairs(self.a[start : start + rows], self.d[start : start + rows])

    def mean_square(self) -> Tensor:
        """Mean over examples of the squared entries of D_n, [out, in]."""
        n, t, width = self.a.shape
        if t == 1:  # (d_i a_j)^2 = d_i^2 a_j^2: one matrix product, no per-example gradient
            return self.d[:, 0].square().T @ self.a[:, 0].square() / n
        total = self.a.new_zeros(self.d.shape[-1], width)
        for piece in self.chunks(total.numel()):
            total += piece.gradients().square_().sum(0)
        return total / n

    def dot(self, directions: Tensor | LowRank) -> Tensor:
        """Inner products <P_q, D_n>, [Q, N], with Q matrices [Q, out, in] or their low-rank factors."""
        if isinstance(directions, LowRank):
            return torch.cat([directions.dot(piece) for piece in self.chunks(directions.width(self))], dim=1)
        t, width = self.a.shape[1:]
        q, out, _ = directions.shape
        if t == 1 and q < min(out, width):  # d^T (P a): cheaper than forming D when there are few queries
            pieces = self.chunks(q * width)
            rows = [(p.d[:, 0] @ directions).mul_(p.a[:, 0]).sum(-1) for p in pieces]
        else:  # tokens are summed once, then shared by all queries
            flat = directions.reshape(q, -1)
            rows = [flat @ p.gradients().flatten(1).T for p in self.chunks(out * width)]
        return torch.cat(rows, dim=1)


class LowRank(NamedTuple):
    """Q matrices in factored form, P_q = left[q] @ right[q]."""

    left: Tensor  # [Q, out, r]
    right: Tensor  # [Q, r, in]

    @classmethod
    def compress(cls, matrices: Tensor, rank: int) -> LowRank | Tensor:
        """Best approximation of the given rank; the matrices themselves where factors are not smaller."""
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        out, width = matrices.shape[-2:]
        if rank * (out + width) >= out * width:
            return matrices
        u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
        return cls(u[..., :rank] * s[..., None, :rank], vh[..., :rank, :])

    def width(self, pairs: Pairs) -> int:
        """Numbers that `dot` holds for each example."""
        return self.left.shape[0] * self.left.shape[-1] * pairs.a.shape[1]

    def dot(self, pairs: Pairs) -> Tensor:
        """sum_t (d_t^T L)(R a_t), [Q, N]."""
        q, _, rank = self.left.shape
        d = pairs.d @ self.left.permute(1, 0, 2).flatten(1)  # [N, T, Q r]
        a = pairs.a @ self.right.flatten(0, 1).T
        return d.mul_(a).sum(1).view(-1, q, rank).sum(-1).T


class Tape:
    """Records layer inputs and output gradients of one forward pass.

    Use as a context manager around the forward pass, then ask for `pairs` of any scalar computed inside. A
    layer used several times contributes several tokens. Examples must not interact: call `model.eval()`
    first, so that normalisation layers use their running statistics.
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self.layers = layers
        self._uses: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
        self._handles: list[Any] = []

    def __enter__(self) -> Tape:
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Callable[..., Tensor]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            # differentiating an added zero needs no weight gradient and survives in-place activations
            probe = torch.zeros_like(output, requires_grad=True)
            self._uses[name].append((inputs[0].detach(), probe))
            return output + probe

        return record

    def pairs(self, objective: Tensor, retain: bool = False) -> dict[str, Pairs]:
        """Inputs and output gradients of `objective` (0-d, a sum over examples) for every layer."""
        for name, uses in self._uses.items():
            if not uses:
                raise ValueError(f"layer {name!r} took no part in the forward pass; leave it out of `layers`")
        probes = [probe for uses in self._uses.values() for _, probe in uses]
        grads = iter(torch.autograd.grad(objective, probes, retain_graph=retain, materialize_grads=True))
        result = {}
        for name, uses in self._uses.items():
            layer = self.layers[name]
            pieces = [(layer_inputs(layer, x), layer_outputs(layer, next(grads))) for x, _ in uses]
            a, d = pieces[0] if len(pieces) == 1 else (torch.cat(p, dim=1) for p in zip(*pieces, strict=True))
            result[name] = Pairs(a, d)
        return result


def layer_inputs(layer: Layer, x: Tensor) -> Tensor:
    """Homogeneous inputs [N, T, in] of a layer; the patches of a convolution."""
    if isinstance(layer, nn.Conv2d):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        x = F.unfold(x, layer.kernel_size, dilation=layer.dilation, stride=layer.stride).transpose(1, 2)
    else:
        x = x.reshape(len(x), -1, x.shape[-1])
    return x if layer.bias is None else F.pad(x, (0, 1), value=1.0)


def layer_outputs(layer: Layer, d: Tensor) -> Tensor:
    """Output gradients [N, T, out] of a layer."""
    if isinstance(layer, nn.Conv2d):
        return d.flatten(2).transpose(1, 2)
    return d.reshape(len(d), -1, d.shape[-1])


def layer_pairs(model: nn.Module, layers: Mapping[str, Layer], objective: Objective, batch: Any) -> dict[str, Pairs]:
    """Factored per-example gradients of `objective(model, batch)`, a sum of losses over the examples."""
    with torch.enable_grad(), Tape(layers) as tape:
        return tape.pairs(objective(model, batch))


def to_matrices(layers: Mapping[str, nn.Module], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters (or gradients of them) by name -> one homogeneous matrix [..., out, in (+1)] a layer."""
    result = {}
    for name, layer in layers.items():
        prefix = f"{name}." if name else ""
        weight = parameters[prefix + "weight"]
        weight = weight.flatten(weight.dim() - layer.weight.dim() + 1)
        result[name] = weight
        if layer.bias is not None:
            result[name] = torch.cat([weight, parameters[prefix + "bias"].unsqueeze(-1)], dim=-1)
    return result


def to_parameters(layers: Mapping[str, nn.Module], matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `to_matrices`."""
    result = {}
    for name, layer in layers.items():
        prefix = f"{name}." if name else ""
        matrix = matrices[name]
        if layer.bias is not None:
            matrix, result[prefix + "bias"] = matrix[..., :-1], matrix[..., -1]
        result[prefix + "weight"] = matrix.reshape(matrix.shape[:-2] + layer.weight.shape)
    return result


@dataclass(frozen=True)
class Block:
    """A layer's curvature, (Q_S kron Q_A) diag(eigenvalues) (Q_S kron Q_A)^T; no basis means the identity."""

    eigenvalues: Tensor  # [out, in]
    basis_out: Tensor | None = None  # Q_S
    basis_in: Tensor | None = None  # Q_A

    def rotate(self, v: Tensor) -> Tensor:
        """Q_S^T V Q_A for matrices [..., out, in]."""
        return v if self.basis_out is None else self.basis_out.T @ v @ self.basis_in

    def rotate_back(self, v: Tensor) -> Tensor:
        """Q_S V Q_A^T."""
        return v if self.basis_out is None else self.basis_out @ v @ self.basis_in.T

    def multiply(self, v: Tensor) -> Tensor:
        """The block times matrices [..., out, in]."""
        return self.rotate_back(self.rotate(v) * self.eigenvalues)

    def solve(self, v: Tensor, damping: float | Tensor) -> Tensor:
        """(block + damping I)^{-1} times matrices [..., out, in]."""
        return self.rotate_back(self.rotate(v) / (self.eigenvalues + damping))


def fit_blocks(
    model: nn.Module,
    batches: Iterable[Any],
    objective: Objective,
    *,
    strategy: Strategy = "ekfac",
    layers: Iterable[str] | None = None,
) -> dict[str, Block]:
    """Fit one curvature block a layer.

    `objective(model, batch)` is the summed pseudo-loss whose gradients' second moment is wanted: with targets
    drawn from the model's own output distribution it is the Fisher (Gauss-Newton) matrix, with the observed
    targets the empirical Fisher. EK-FAC goes through `batches` twice (covariances, then eigenvalues).
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}; choose one of {STRATEGIES}")
    chosen = linear_layers(model, layers)
    if strategy == "identity":
        matrices = to_matrices(chosen, dict(model.named_parameters()))
        return {name: Block(torch.ones_like(m)) for name, m in matrices.items()}
    if isinstance(batches, Iterator):
        raise TypeError("batches is a one-way iterator but is needed twice; pass a list or a DataLoader")
    if strategy == "diagonal":
        tables = eigenvalues(model, batches, objective, chosen, {})
        return {name: Block(table) for name, table in tables.items()}
    blocks = {}
    for name, (a, s) in covariances(model, batches, objective, chosen).items():
        eig_in, basis_in = _eigh(a)
        eig_out, basis_out = _eigh(s)
        blocks[name] = Block(torch.outer(eig_out, eig_in), basis_out, basis_in)
    if strategy == "ekfac":
        tables = eigenvalues(model, batches, objective, chosen, blocks)
        blocks = {name: Block(tables[name], b.basis_out, b.basis_in) for name, b in blocks.items()}
    return blocks


def covariances(
    model: nn.Module, batches: Iterable[Any], objective: Objective, layers: Mapping[str, Layer]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Uncentred covariances (A [in, in], S [out, out]) of inputs and output gradients, means over tokens."""
    sums: dict[str, list[Tensor]] = {}
    tokens: dict[str, int] = dict.fromkeys(layers, 0)
    for batch in batches:
        for name, pairs in layer_pairs(model, layers, objective, batch).items():
            a, d = (x.flatten(0, 1) for x in pairs)
            if name not in sums:
                sums[name] = [x.new_zeros(x.shape[1], x.shape[1]) for x in (a, d)]
            for total, x in zip(sums[name], (a, d), strict=True):
                total.addmm_(x.T, x)
            tokens[name] += len(a)
    if not sums:
        raise ValueError("batches is empty; pass at least one batch")
    return {name: (a / tokens[name], s / tokens[name]) for name, (a, s) in sums.items()}


def eigenvalues(
    model: nn.Module,
    batches: Iterable[Any],
    objective: Objective,
    layers: Mapping[str, Layer],
    bases: Mapping[str, Block],
) -> dict[str, Tensor]:
    """E_n[(Q_S^T D_n Q_A)^2] for each layer; without bases the plain diagonal."""
    sums: dict[str, Tensor] = {}
    examples = 0
    for batch in batches:
        pairs = {}
        for name, (a, d) in layer_pairs(model, layers, objective, batch).items():
            basis = bases.get(name)
            pairs[name] = Pairs(a, d) if basis is None else Pairs(a @ basis.basis_in, d @ basis.basis_out)
        size = len(next(iter(pairs.values())).a)
        examples += size
        for name, p in pairs.items():
            table = p.mean_square() * size
            sums[name] = sums[name] + table if name in sums else table
    if not sums:
        raise ValueError("batches is empty; pass at least one batch")
    return {name: table / examples for name, table in sums.items()}


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (clipped at zero) and eigenvectors; in float64, as small eigenvalues decide the inverse."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.clamp_min(0).to(matrix), vectors.to(matrix)
