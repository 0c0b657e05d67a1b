"""How sharp a minimum is, and how many hidden units are at work in it."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from secondlook.curvature import HessianOperator, eigsh


def hessian_top_eig(
    loss_closure: Callable[[], Tensor],
    params: Sequence[Tensor],
    k: int = 1,
    iters: int = 50,
    *,
    tol: float = 1e-3,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The `k` largest eigenvalues of the Hessian of a loss, with their sign, descending.

    By Lanczos: power iteration finds the largest modulus, which may belong to a negative eigenvalue.

    Args:
        loss_closure: the loss on a fixed batch, 0-d, without `backward`; put the model in evaluation mode before.
        params: what the Hessian is taken by.
        iters: most products with the Hessian; more than `k`.
        tol: residual at which to stop, relative to the largest eigenvalue seen.
        generator: source of the starting vector; by default seed 0.

    Raises:
        ValueError: `iters` is not above `k`.
    """
    if not 1 <= k < iters:
        raise ValueError(f"iters must be larger than k, and k at least 1, got k={k} and iters={iters}")
    params = list(params)
    generator = generator or torch.Generator(params[0].device).manual_seed(0)
    hessian = HessianOperator.of_loss(lambda _: loss_closure(), params)
    return eigsh(hessian, k, tol=tol, max_products=iters, generator=generator).values


@torch.no_grad()
def active_fraction(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, float]:
    """Percentage of positive pre-activations of every GELU and ReLU module over all inputs, by the module's name.

    Modules used several times count all their uses; those never used are left out. The model runs in evaluation mode.
    """
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda _, inputs: seen.setdefault(name, []).append(
            torch.stack([(inputs[0] > 0).sum(), torch.tensor(inputs[0].numel(), device=inputs[0].device)])
        )

    units = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.GELU | nn.ReLU)]
    hooks = [m.register_forward_pre_hook(watch(name)) for name, m in units]
    training = model.training
    model.eval()
    try:
        for x in batches:
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return {
        name: 100 * positive / total for name, c in seen.items() for positive, total in [torch.stack(c).sum(0).tolist()]
    }
