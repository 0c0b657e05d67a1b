"""Images to train on, and the same test images spoilt in three ways."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from secondlook.problems import datasets
from secondlook.problems.datasets import Dataset, Split


@dataclass(frozen=True)
class Images:
    """Standardised images of three channels, the test images corrupted in three ways, and rows to probe the loss on."""

    clean: Dataset
    corrupted: tuple[Split, ...]
    probe: Split
    flips: bool

    @classmethod
    def load(cls, name: str, rows: int | None, probe_rows: int, device: str) -> "Images":
        """Data set `name`, of its training part the first `rows`; a grey channel becomes three equal ones.

        The other rows of the training part join the validation part, so that choices are less a matter of luck.
        """
        data = datasets.load(name).to(device)
        if rows is not None:
            kept, spare = (Split(data.train.x[part], data.train.y[part]) for part in (slice(rows), slice(rows, None)))
            data = replace(data, train=kept, val=Split(*map(torch.cat, zip(spare, data.val, strict=True))))
        std, mean = torch.std_mean(data.train.x, (0, 2, 3), keepdim=True)

        def standard(split: Split) -> Split:
            return Split(((split.x - mean) / std).expand(-1, 3, -1, -1).contiguous(), split.y)

        noise = torch.Generator(device).manual_seed(0)
        spoilt = [standard(Split(x, data.test.y)) for x in corruptions(data.test.x, noise)]
        clean = data.map(standard)
        probe = Split(clean.train.x[:probe_rows], clean.train.y[:probe_rows])
        return cls(clean, tuple(spoilt), probe, flips=name != "digits")


def corruptions(x: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Images [N, C, H, W] in [0, 1] with Gaussian noise (0.25), blurred by a 3x3 mean, and at 30% of their contrast."""
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    middle = x.mean((1, 2, 3), keepdim=True)
    blurred = F.avg_pool2d(F.pad(x, [1] * 4, mode="replicate"), 3, stride=1)
    return [(x + 0.25 * noise).clamp(0, 1), blurred, middle + 0.3 * (x - middle)]
