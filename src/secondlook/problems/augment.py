"""Random changes to a batch of images, on its device and all at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["crop_and_flip"]


def crop_and_flip(x: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Each image [N, C, H, W] shifted by up to ``padding`` pixels (zeros move in) and mirrored half the time.

    The usual CIFAR augmentation (He et al., 2015, section 4.2).
    """
    n, _, height, width = x.shape
    draws = torch.rand(3, n, generator=generator, device=generator.device).to(x.device)
    down, right = (draws[:2] * (2 * padding + 1)).long()
    rows = down[:, None] + torch.arange(height, device=x.device)
    columns = right[:, None] + torch.arange(width, device=x.device)
    columns = torch.where(draws[2, :, None] < 0.5, columns.flip(1), columns)
    image = torch.arange(n, device=x.device)
    padded = F.pad(x, [padding] * 4).permute(0, 2, 3, 1)
    cut = padded[image[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2).contiguous()
