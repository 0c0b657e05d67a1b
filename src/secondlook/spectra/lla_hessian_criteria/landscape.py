r"""The loss on a plane through the weights: $f(a, b) = L(w + a d_1 + b d_2)$, along random, Adam's or Hessian axes."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from secondlook.curvature import pack, unpack

from .method import HessianSpectrum

__all__ = ["adam_axes", "landscape", "normalised", "random_axes"]

Axis = Sequence[Tensor]
Normalisation = Literal["none", "weight", "layer", "model", "filter"]


def landscape(
    model: nn.Module,
    loss_closure: Callable[[], Tensor],
    axes: Literal["random", "uniform", "hessian"] | tuple[Axis, Axis] = "random",
    normalize: Normalisation = "filter",
    span: float = 1.0,
    steps: int = 40,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The loss at `a, b` from -span / 2 to span / 2 in cells of span / steps, `[steps + 1, steps + 1]`.

    Args:
        loss_closure: `loss_closure()` evaluates the model on a fixed batch. The model's mode is left alone.
        axes: "random" (normal entries), "uniform" (entries in [0, 1], the second axis made orthogonal to the first;
            the released code), "hessian" (the two eigenvectors of largest magnitude), or two directions, lists of
            tensors shaped like the parameters, such as `adam_axes(optimizer)`.
        normalize: see `normalised`. "none" leaves eigenvectors at length one.

    Row i is a = (i / steps - 1/2) span, column j the same for b; `steps` must be even so that the weights
    themselves stand in the middle. The released raster shifts every second row by one cell; this one does not.
    """
    if steps < 2 or steps % 2:
        raise ValueError(f"steps must be even and at least 2, so that the centre is on the grid, got {steps}")
    params = [p for p in model.parameters() if p.requires_grad]
    if axes == "hessian":
        vectors = HessianSpectrum(params, loss_closure, generator).top(2).vectors
        axes = tuple(unpack(v, params) for v in vectors.T)
    elif isinstance(axes, str):
        axes = random_axes(params, generator or torch.Generator().manual_seed(0), axes)
    first, second = (normalised(d, params, normalize) for d in axes)
    places = [span * (i / steps - 0.5) for i in range(steps + 1)]
    centre = [p.detach().clone() for p in params]
    rows = []
    with torch.no_grad():
        try:
            for a in places:
                row = torch._foreach_add(centre, first, alpha=a)
                for b in places:
                    torch._foreach_copy_(params, torch._foreach_add(row, second, alpha=b))
                    rows.append(loss_closure())
        finally:
            torch._foreach_copy_(params, centre)
    return torch.stack(rows).view(steps + 1, steps + 1)


def random_axes(
    params: Sequence[Tensor], generator: torch.Generator, kind: Literal["random", "uniform"] = "random"
) -> tuple[list[Tensor], list[Tensor]]:
    """Two directions: independent normal entries, or uniform ones with the second made orthogonal to the first."""
    if kind not in ("random", "uniform"):
        raise ValueError(f"axes must be 'random', 'uniform', 'hessian' or two directions, got {kind!r}")
    draw = torch.randn if kind == "random" else torch.rand
    where = {"generator": generator, "device": generator.device}
    first, second = ([draw(p.shape, dtype=p.dtype, **where).to(p.device) for p in params] for _ in range(2))
    if kind == "uniform":
        a, b = pack(first), pack(second)
        second = unpack(b - (a @ b) / (a @ a) * a, params)
    return first, second


def adam_axes(optimizer: torch.optim.Optimizer) -> tuple[list[Tensor], list[Tensor]]:
    """Adam's two moment vectors times the learning rate. Raises `ValueError` before its first step."""
    pairs = [(group["lr"], optimizer.state[p]) for group in optimizer.param_groups for p in group["params"]]
    if not all({"exp_avg", "exp_avg_sq"} <= state.keys() for _, state in pairs):
        raise ValueError("the optimizer has no moments yet: use Adam or AdamW and take at least one step")
    first, second = ([lr * state[name] for lr, state in pairs] for name in ("exp_avg", "exp_avg_sq"))
    return first, second


def normalised(direction: Axis, params: Sequence[Tensor], how: Normalisation, order: int = 2) -> list[Tensor]:
    """A direction in the scale of the parameters, by norms of the given `order` (1 or 2).

    "weight" multiplies by the parameters, entry by entry; "layer", "filter" and "model" bring tensors, slices along
    the first axis of tensors with two or more axes (others as a whole), or everything to the parameters' norms.
    """
    if how == "none":
        return list(direction)
    if how == "weight":
        return [d * p.detach() for d, p in zip(direction, params, strict=True)]
    if how == "model":
        d, w = (torch.linalg.vector_norm(pack(t), order) for t in (direction, [p.detach() for p in params]))
        return [d_i * (w / (d + 1e-10)) for d_i in direction]
    if how not in ("layer", "filter"):
        raise ValueError(f"normalize must be 'none', 'weight', 'layer', 'model' or 'filter', got {how!r}")

    def norms(t: Tensor) -> Tensor:
        over = tuple(range(1 if how == "filter" and t.ndim > 1 else 0, t.ndim))
        return torch.linalg.vector_norm(t, order, dim=over, keepdim=True)

    return [d * (norms(p.detach()) / (norms(d) + 1e-10)) for d, p in zip(direction, params, strict=True)]
