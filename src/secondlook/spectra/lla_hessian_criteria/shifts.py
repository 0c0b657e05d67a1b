"""Shifts of the data distribution: changes of grey or colour images `[N, C, H, W]` with values in [0, 1]."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["shifted"]


def shifted(x: Tensor, kind: str, amount: float, generator: torch.Generator) -> Tensor:
    """The images after one shift.

    noise: plus normal noise of that standard deviation; roll: moved right and down by that many pixels, round the
    edge; invert: blended with the negative, 1 being the negative itself; blur: averaged over squares of that
    (odd) side; rotate: turned by that many degrees, zeros move in.
    """
    match kind:
        case "noise":
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
            return x + amount * noise.to(x.device)
        case "roll":
            return x.roll((int(amount), int(amount)), (2, 3))
        case "invert":
            return (1 - amount) * x + amount * (1 - x)
        case "blur":
            side = int(amount)
            return F.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=False)
        case "rotate":
            c, s = math.cos(math.radians(amount)), math.sin(math.radians(amount))
            turn = x.new_tensor([[c, -s, 0], [s, c, 0]]).expand(len(x), 2, 3)
            return F.grid_sample(x, F.affine_grid(turn, list(x.shape), align_corners=False), align_corners=False)
    raise ValueError(f"shift must be noise, roll, invert, blur or rotate, got {kind!r}")
