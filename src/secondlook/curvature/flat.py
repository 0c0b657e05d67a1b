"""Lists of parameters as flat vectors, and back."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["numel", "pack", "unpack"]


def numel(tensors: Iterable[Tensor]) -> int:
    """Number of entries in all `tensors` together."""
    return sum(t.numel() for t in tensors)


def pack(tensors: Iterable[Tensor], *, lead: int = 0) -> Tensor:
    """Join tensors of shapes `[*L, *shape_i]` into one of shape `[*L, P]`, `lead = len(L)` leading axes kept.

    The result is a copy. An empty list raises `ValueError`: it has neither dtype nor device.
    """
    tensors = list(tensors)
    if not tensors:
        raise ValueError("pack got an empty list: hand in at least one tensor (do the parameters require grad?)")
    if not lead:
        return torch.cat([t.flatten() for t in tensors])
    return torch.cat([t.flatten(lead) if t.ndim > lead else t.unsqueeze(-1) for t in tensors], dim=-1)


def unpack(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Split `flat`, `[*L, P]`, into tensors `[*L, *t.shape]` for `t` in `like`, as views where strides allow.

    Raises `ValueError` when the last axis does not hold exactly the entries of `like`.
    """
    sizes = [t.numel() for t in like]
    if flat.ndim == 0 or flat.shape[-1] != sum(sizes):
        raise ValueError(f"cannot unpack shape {tuple(flat.shape)}: the last axis must have {sum(sizes)} entries")
    parts = torch.split_with_sizes(flat, sizes, dim=-1)  # Tensor.split does the same, through slow Python
    if flat.ndim == 1:
        return [part.view_as(t) for part, t in zip(parts, like, strict=True)]
    lead = flat.shape[:-1]
    return [part.reshape(lead + t.shape) for part, t in zip(parts, like, strict=True)]
