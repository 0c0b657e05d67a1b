r"""Gauss-Newton products and rows in the layout of the layer matrices.

    G = (1/N) sum_i J_i^T H_i J_i

with J_i the Jacobian of example i's outputs and H_i the Hessian of the loss with respect to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from secondlook.curvature.kronecker import Layer, Tape, to_matrices, to_parameters
from secondlook.curvature.products import derivative
from secondlook.influence.ekfac_influence.losses import OutputLoss

Matrices = dict[str, Tensor]  # one [..., out, in] a layer


def weights(model: nn.Module, layers: Mapping[str, Layer]) -> Matrices:
    """The trained weights of the chosen layers, detached."""
    return to_matrices(layers, {name: p.detach() for name, p in model.named_parameters()})


def forward(model: nn.Module, layers: Mapping[str, Layer], matrices: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Outputs with the chosen layers' weights replaced; all other parameters stay as they are."""
    return functional_call(model, to_parameters(layers, matrices), (x,))


def flatten(matrices: Mapping[str, Tensor]) -> Tensor:
    """Layer matrices [..., out, in] -> vectors [..., P]."""
    return torch.cat([m.flatten(-2) for m in matrices.values()], dim=-1)


def unflatten(vectors: Tensor, like: Mapping[str, Tensor]) -> Matrices:
    """Inverse of `flatten`; the last two dimensions of `like` give the layers' shapes."""
    parts = vectors.split([m.shape[-2] * m.shape[-1] for m in like.values()], dim=-1)
    return {n: p.unflatten(-1, m.shape[-2:]) for (n, m), p in zip(like.items(), parts, strict=True)}


def spread(damping: Mapping[str, float], like: Mapping[str, Tensor]) -> Tensor:
    """lambda of each parameter, [P]."""
    return torch.cat([m.new_full((m.shape[-2] * m.shape[-1],), damping[n]) for n, m in like.items()])


def root_rows(model: nn.Module, layers: Mapping[str, Layer], loss: OutputLoss, x: Tensor) -> Tensor:
    """U [N C, P] with U^T U = sum_i J_i^T H_i J_i, for outputs [N, C]."""
    with torch.enable_grad(), Tape(layers) as tape:
        outputs = model(x)
        if outputs.dim() != 2:
            shape = tuple(outputs.shape)
            raise ValueError(f"a dense Gauss-Newton matrix wants outputs [N, C], got {shape}; use cg_solver instead")
        # with R R^T = H, the gradient of sum_c R[c, k] h_c is row k of R^T J
        scalars = torch.einsum("nck,nc->k", loss.hessian_root(outputs.detach()), outputs)
        rows = [tape.pairs(s, retain=True) for s in scalars]
    return torch.cat([flatten({n: p.gradients() for n, p in pairs.items()}) for pairs in rows])


def product(model: nn.Module, layers: Mapping[str, Layer], loss: OutputLoss, x: Tensor, v: Matrices) -> Matrices:
    """sum_i J_i^T H_i J_i v for Q directions at once, v [Q, out, in] a layer.

    Forward once. J^T w is linear in w, so differentiating it by w along v gives J v.
    """
    names = to_parameters(layers, v)
    parameters = [model.get_parameter(name) for name in names]
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be differentiated twice
        outputs = model(x)
        w = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(outputs, parameters, w, create_graph=True)
    batched = len(next(iter(v.values()))) > 1  # a batch of one is faster without vmap
    directions = [u if batched else u[0] for u in names.values()]
    (pushed,) = derivative(pulled, [w], directions, batched)
    curve = partial(loss.hessian_product, outputs.detach())
    back = derivative([outputs], parameters, [vmap(curve)(pushed) if batched else curve(pushed)], batched)
    return to_matrices(layers, dict(zip(names, back if batched else [g.unsqueeze(0) for g in back], strict=True)))
