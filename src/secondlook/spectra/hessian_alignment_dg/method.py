r"""Gradients and Hessians of a linear head in closed form, and the penalties that align them across domains.

Hemati, Zhang, Estiri, Chen, "Understanding Hessian Alignment for Domain Generalization" (ICCV 2023). For features z,
a head $f = W z + b$ and cross-entropy, with $p$ the predicted probabilities and $\tilde z = (z, 1)$,

    g = E[(p - y) (x) z~],   H = E[(diag p - p p^T) (x) z~ z~^T]      (logistic head: H = E[p (1 - p) z~ z~^T])

in the order of the head's parameters, weight first. H does not depend on the labels. With g and H those of the mean
loss over the E training domains, the penalties are

    HGP         1/E sum_e alpha |H_e g_e - H g|^2       + beta |g_e - g|^2
    Hutchinson  1/E sum_e alpha |D_e - D|^2             + beta |g_e - g|^2,   D = 1/T sum_t z_t * (H z_t)
    exact       1/E sum_e alpha |H_e - H|_F^2           + beta |g_e - g|^2    (what the two stand for)

Everything is differentiable in features and head, and goes through `torch.func.vmap`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from secondlook.curvature import FunctionOperator, diagonal, probe_vectors

__all__ = ["HessianAlignment", "head_gradient", "head_hessian", "head_product", "hgp", "hutchinson_diag"]

Head = nn.Linear | tuple[Tensor, Tensor]
"""A linear layer with bias, or its weight `[C, F]` and bias `[C]`. One output means a logistic head, C > 1 softmax."""


def head_gradient(z: Tensor, y: Tensor, head: Head) -> Tensor:
    """Gradient of the mean loss by the head, `[C F + C]`, weight first.

    Args:
        z: features `[N, F]`.
        y: classes `[N]`; for one output labels in [0, 1], `[N]` or `[N, 1]`, which may be probabilities.
    """
    p = _probabilities(z, head)
    residual = (p - _targets(y, p)) / len(z)
    return torch.cat([(residual.mT @ z).flatten(), residual.sum(0)])


def head_product(z: Tensor, head: Head, v: Tensor) -> Tensor:
    """The head's Hessian times the columns of `v`, `[C F + C, k]`, without forming it."""
    p, width = _probabilities(z, head), z.shape[1]
    outputs, k = p.shape[1], v.shape[1]
    if v.shape[0] != outputs * (width + 1):
        raise ValueError(f"need vectors of {outputs * (width + 1)} entries (weight, then bias), got {v.shape[0]}")
    weight, bias = v[: outputs * width].reshape(outputs, width, k), v[outputs * width :]
    moved = torch.einsum("nf,cfk->nck", z, weight) + bias
    p = p.unsqueeze(-1)
    curved = p * (1 - p) * moved if outputs == 1 else p * moved - p * (p * moved).sum(1, keepdim=True)
    curved = curved / len(z)
    return torch.cat([torch.einsum("nck,nf->cfk", curved, z).reshape(outputs * width, k), curved.sum(0)])


def head_hessian(z: Tensor, y: Tensor, head: Head) -> Tensor:
    """Hessian of the mean loss by the head, `[C F + C, C F + C]`. The labels `y` play no part in it."""
    p = _probabilities(z, head)
    (n, width), outputs = z.shape, p.shape[1]
    S = (p * (1 - p)).unsqueeze(-1) if outputs == 1 else torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    z = torch.cat([z, torch.ones_like(z[:, :1])], 1)
    left = torch.einsum("ncd,nf->ncdf", S / n, z)
    H = torch.einsum("ncdf,ng->cfdg", left, z).reshape(outputs * (width + 1), -1)
    rank = torch.arange(len(H), device=z.device).view(outputs, width + 1)
    order = torch.cat([rank[:, :width].flatten(), rank[:, width]])
    return H[order][:, order]


def hgp(z: Tensor, y: Tensor, head: Head) -> Tensor:
    """Hessian-gradient product H g, `[C F + C]`; the released |g| grad |g| is the same, but undefined at g = 0."""
    return head_product(z, head, head_gradient(z, y, head).unsqueeze(1)).squeeze(1)


def hutchinson_diag(
    z: Tensor, y: Tensor, head: Head, probes: int | Tensor = 150, *, generator: torch.Generator | None = None
) -> Tensor:
    """Hutchinson's estimate of the Hessian's diagonal, `[C F + C]`, from Rademacher probes (a number, or `[P, T]`).

    Differentiable for fixed probes. The labels `y` play no part in it.
    """
    return _diagonal([z], head, probes, generator)


class HessianAlignment(nn.Module):
    """Penalty on what distinguishes the head's gradients and Hessians of the training domains.

    Args:
        kind: "hgp", "hutchinson" or "exact"; see the top of the file.
        alpha, beta: weights of the Hessian and the gradient term; `alpha=0` leaves gradient matching.
        probes: of every estimate of kind "hutchinson", drawn afresh for each domain and for their mean.
        detach_mean: no gradient through the terms of the mean (the released DomainBed version; the released
            Colored-MNIST script lets it flow).
        reduction: "mean" over domains, or "sum" (the released Colored-MNIST script).
        generator: draws the probes; needed for kind "hutchinson" unless they are handed to `forward`.
    """

    def __init__(
        self,
        kind: Literal["hgp", "hutchinson", "exact"] = "hgp",
        alpha: float = 1.0,
        beta: float = 1.0,
        *,
        probes: int = 150,
        detach_mean: bool = False,
        reduction: Literal["mean", "sum"] = "mean",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if kind not in ("hgp", "hutchinson", "exact"):
            raise ValueError(f"kind must be 'hgp', 'hutchinson' or 'exact', got {kind!r}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        if alpha < 0 or beta < 0:
            raise ValueError(f"alpha and beta must not be negative, got {alpha} and {beta}")
        self.kind, self.alpha, self.beta, self.probes = kind, alpha, beta, probes
        self.detach_mean, self.reduction, self.generator = detach_mean, reduction, generator

    def forward(
        self, domains: Sequence[tuple[Tensor, Tensor]], head: Head, probes: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The penalty, 0-d, for `(z, y)` of every domain; `probes` are one `[P, T]` a domain and one for the mean."""
        if len(domains) < 2:
            raise ValueError(f"alignment needs at least two domains, got {len(domains)}")
        gradients = [head_gradient(z, y, head) for z, y in domains]
        mean = sum(gradients) / len(domains)
        total = self.beta * self._spread(gradients, mean)
        if self.alpha:
            total = total + self.alpha * self._spread(*self._curvatures(domains, head, gradients, mean, probes))
        return total / len(domains) if self.reduction == "mean" else total

    def _spread(self, each: Sequence[Tensor], mean: Tensor) -> Tensor:
        mean = mean.detach() if self.detach_mean else mean
        return sum((one - mean).square().sum() for one in each)

    def _curvatures(
        self,
        domains: Sequence[tuple[Tensor, Tensor]],
        head: Head,
        gradients: Sequence[Tensor],
        mean: Tensor,
        probes: Sequence[Tensor] | None,
    ) -> tuple[list[Tensor], Tensor]:
        """What the Hessian term compares: that of each domain, and that of the mean loss."""
        features = [z for z, _ in domains]
        if self.kind == "exact":
            each = [head_hessian(z, y, head) for z, y in domains]
            return each, sum(each) / len(each)
        if self.kind == "hgp":
            each = [head_product(z, head, g.unsqueeze(1)) for z, g in zip(features, gradients, strict=True)]
            return each, sum(head_product(z, head, mean.unsqueeze(1)) for z in features) / len(features)
        probes = [self.probes] * (len(features) + 1) if probes is None else probes
        if len(probes) != len(features) + 1:
            raise ValueError(f"need probes for {len(features)} domains and their mean, got {len(probes)}")
        each = [_diagonal([z], head, v, self.generator) for z, v in zip(features, probes, strict=False)]
        return each, _diagonal(features, head, probes[-1], self.generator)


def _diagonal(
    features: Sequence[Tensor], head: Head, probes: int | Tensor, generator: torch.Generator | None
) -> Tensor:
    """Hutchinson's diagonal of the Hessian of the mean loss over some domains."""
    z = features[0]
    size = sum(t.numel() for t in _parts(head))
    if isinstance(probes, int):
        if generator is None:
            raise ValueError("drawing probes needs a generator: pass generator=torch.Generator().manual_seed(...)")
        probes = probe_vectors(size, probes, generator=generator, dtype=z.dtype, device=z.device)

    def product(v: Tensor) -> Tensor:
        return sum(head_product(one, head, v) for one in features) / len(features)

    return diagonal(FunctionOperator(product, size, dtype=z.dtype, device=z.device), probes).value


def _parts(head: Head) -> tuple[Tensor, Tensor]:
    weight, bias = (head.weight, head.bias) if isinstance(head, nn.Linear) else head
    if bias is None:
        raise ValueError("the head needs a bias: make it nn.Linear(features, outputs)")
    return weight, bias


def _probabilities(z: Tensor, head: Head) -> Tensor:
    weight, bias = _parts(head)
    if z.ndim != 2 or z.shape[1] != weight.shape[1]:
        raise ValueError(f"features must have shape [N, {weight.shape[1]}], got {tuple(z.shape)}")
    logits = z @ weight.mT + bias
    return logits.sigmoid() if len(weight) == 1 else logits.softmax(1)


def _targets(y: Tensor, p: Tensor) -> Tensor:
    if len(y) != len(p):
        raise ValueError(f"{len(y)} labels for {len(p)} rows of features")
    if p.shape[1] == 1:
        return y.reshape(-1, 1).to(p.dtype)
    return (y.unsqueeze(1) == torch.arange(p.shape[1], device=y.device)).to(p.dtype)
