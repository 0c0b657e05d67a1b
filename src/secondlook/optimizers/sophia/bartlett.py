"""The Gauss-Newton diagonal from one gradient, with labels that the model itself drew (Bartlett's second identity)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_labels(scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One class drawn for every row of `scores` [..., classes] from its softmax, [...] on the scores' device."""
    likely = scores.detach().flatten(0, -2).softmax(-1)
    if generator is not None:
        likely = likely.to(generator.device)
    return torch.multinomial(likely, 1, generator=generator).view(scores.shape[:-1]).to(scores.device)


def bartlett_diag(
    scores: Tensor,
    params: Sequence[Tensor],
    *,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    max_norm: float | None = None,
) -> list[Tensor]:
    """Estimate the Gauss-Newton diagonal of the mean cross-entropy by the Gauss-Newton-Bartlett rule, B g * g.

    g is the gradient of the mean over the B rows with labels drawn from the model; then the expected square of a
    softmax score is its curvature, so the estimate is unbiased and never negative. With the labels of the data it
    would be the empirical Fisher matrix, which is something else.

    Args:
        scores: the model's logits [..., classes], with their graph (which is kept).
        params: what to differentiate by.
        labels: the draws [...] themselves; replaces `generator`.
        generator: source of the draws; torch's default generator when None.
        max_norm: clip g to this norm first, as the released GPT-2 script does (1.0). That biases the estimate.

    Raises:
        ValueError: `scores` has no axis of rows, or `labels` does not fit.
    """
    if scores.ndim < 2:
        raise ValueError(f"scores must have shape [..., classes] with at least one row axis, got {tuple(scores.shape)}")
    labels = sample_labels(scores, generator) if labels is None else labels
    if labels.shape != scores.shape[:-1]:
        raise ValueError(f"labels must have shape {tuple(scores.shape[:-1])}, got {tuple(labels.shape)}")
    with torch.enable_grad():
        loss = F.cross_entropy(scores.flatten(0, -2), labels.flatten())
    grads = torch.autograd.grad(loss, params, retain_graph=True, materialize_grads=True)
    if max_norm is not None:
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        grads = torch._foreach_mul(grads, (max_norm / norm).clamp(max=1))
    diagonal = torch._foreach_mul(grads, grads)
    torch._foreach_mul_(diagonal, labels.numel())
    return list(diagonal)
