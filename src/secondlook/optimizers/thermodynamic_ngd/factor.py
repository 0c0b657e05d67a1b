"""A factor of the Gauss-Newton matrix of a batch, one block of columns an example."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from secondlook.curvature import pack
from secondlook.curvature.products import derivative


def output_factor(outputs: Tensor, loss: Literal["cross_entropy", "mse"]) -> Tensor:
    """B [b, C, R] with B B^T the Hessian of each example's loss in its outputs [b, C].

    Squared error: R = C, B = sqrt(2 / C) I. Cross-entropy: with s = sqrt(p) the Hessian is diag(s) (I - s s^T) diag(s),
    and the Householder reflection that sends s to -e_C has R = C - 1 columns orthogonal to s beside s itself. They take
    the place of I - s s^T, so that a factor has no column more than the rank.
    """
    if loss == "mse":
        classes = outputs.shape[-1]
        return (2 / classes) ** 0.5 * torch.eye(classes, dtype=outputs.dtype, device=outputs.device).expand(
            *outputs.shape, classes
        )
    s = outputs.softmax(-1).sqrt()
    eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    normal = s + eye[-1]  # of the mirror; its square is twice its last entry
    reflection = eye - normal.unsqueeze(-1) * (normal / normal[..., -1:]).unsqueeze(-2)
    return s.unsqueeze(-1) * reflection[..., :-1]


def curvature_factor(
    model: nn.Module, params: Mapping[str, Tensor], inputs: Tensor, loss: Literal["cross_entropy", "mse"]
) -> Tensor:
    """U [N, b R] with U U^T the Gauss-Newton matrix of the mean loss, for N the entries of `params` in their order.

    Every example gets a copy of the parameters, so that one backward pass per output gives the rows of all examples.
    """
    copies = {name: p.detach().expand(len(inputs), *p.shape).requires_grad_() for name, p in params.items()}
    with torch.enable_grad():
        outputs = vmap(lambda own, x: functional_call(model, own, (x.unsqueeze(0),))[0])(copies, inputs)
    seeds = output_factor(outputs.detach(), loss).movedim(-1, 0)  # one column of B for each example
    rows = derivative([outputs], list(copies.values()), [seeds], batched=True)  # [R, b, *shape]
    return pack(rows, lead=2).flatten(0, 1).T / len(inputs) ** 0.5
