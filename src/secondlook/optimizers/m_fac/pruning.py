"""Optimal Brain Surgeon on a whole network at once, with M-FAC's inverse Fisher in place of the inverse Hessian.

Removing weight k alone, and moving the others to make up for it, costs rho_k = w_k^2 / (2 (F^-1)_kk). The cheapest
weights go together; their corrections are added up, F^-1 t with t_k = -w_k / (F^-1)_kk, which one product computes.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.curvature import pack, unpack
from secondlook.optimizers.m_fac.method import StaticIHVP, check_count


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of the convolution and linear layers by name: no biases, no normalisation."""
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    return {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, layers)}


def batch_gradients(
    model: nn.Module, loss_fn: Callable[[nn.Module, Any], Tensor], batches: Iterable[Any], params: list[Tensor]
) -> Tensor:
    """Gradients [m, d] of `loss_fn(model, batch)` with respect to `params`, a row a batch, in evaluation mode."""
    training = model.training
    model.eval()
    rows = [pack(torch.autograd.grad(loss_fn(model, b), params, materialize_grads=True)) for b in batches]
    model.train(training)
    return torch.stack(rows)


def obs_step(w: Tensor, fisher: StaticIHVP, n: int) -> tuple[Tensor, Tensor]:
    """Remove the n cheapest weights of w [d]. Returns the new weights and which are left, a mask [d]."""
    if not 0 <= n <= len(w):
        raise ValueError(f"n must lie between 0 and {len(w)}, the number of weights, got {n}")
    # Rounding may leave nothing of an entry far below 1 / damp; its weight is a dear one and stays.
    diagonal = fisher.diag().clamp_min(torch.finfo(w.dtype).tiny)
    gone = (w.square() / (2 * diagonal)).topk(n, largest=False).indices
    t = torch.zeros_like(w)
    t[gone] = -w[gone] / diagonal[gone]
    new = w + fisher.mul(t)
    new[gone] = 0
    left = torch.ones_like(w, dtype=torch.bool)
    left[gone] = False
    return new, left


def obs_prune(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    loader: Iterable[Any],
    sparsity: float,
    n_grads: int,
    block_size: int | None = None,
    recomputations: int = 1,
    *,
    damp: float = 1e-5,
    as_released: bool = False,
) -> dict[str, Tensor]:
    """Prune a trained model in place; weights that are zero already count as pruned and stay zero.

    Args:
        model: its convolution and linear weights together are pruned, see `prunable`.
        loss_fn: mean loss of a batch, `loss_fn(model, batch)`.
        loader: batches, started again whenever it ends. The paper's hold 32 examples.
        sparsity: share of zeros to reach, in [0, 1).
        n_grads: gradients in the Fisher, m, one a batch.
        block_size: as in `StaticIHVP`; the blocks are cut from the vector of the weights that are left.
        recomputations: steps to the target, each with new gradients; each keeps the same share of what is left.
        damp: as in `StaticIHVP`.
        as_released: leave the last of the m gradients zero, as the authors' code does.

    Returns:
        For each pruned parameter, by name, a mask of the weights that are left.

    Raises:
        ValueError: an option is out of range, the loader is empty, or the model is sparser already.
    """
    check_count("n_grads", n_grads)
    check_count("recomputations", recomputations)
    weights = prunable(model)
    if not weights:
        raise ValueError("the model has no convolution or linear layer, so there is nothing to prune")
    params = list(weights.values())
    w = pack(p.detach() for p in params)
    left = w != 0
    kept = left.double().mean().item()
    if not 0 <= sparsity < 1 or 1 - sparsity > kept:
        raise ValueError(f"sparsity must lie between the model's own, {1 - kept:.4g}, and 1, got {sparsity!r}")
    batches = _again_and_again(loader)
    for step in range(1, recomputations + 1):
        density = kept * ((1 - sparsity) / kept) ** (step / recomputations)
        # The small number keeps floor(d * (target - current)) from losing a weight to rounding.
        n = int(len(w) * (1 - density) + 1e-6) - int((~left).sum())
        G = batch_gradients(model, loss_fn, islice(batches, n_grads), params)[:, left]
        if as_released:
            G[-1] = 0
        w[left], still = obs_step(w[left], StaticIHVP(G, damp, block_size), n)
        left[left.clone()] = still
        with torch.no_grad():
            for p, part in zip(params, unpack(w, params), strict=True):
                p.copy_(part)
    return dict(zip(weights, unpack(left, params), strict=True))


def _again_and_again(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise ValueError("the loader has no (more) batches: hand in one that can be started again, such as a list")
