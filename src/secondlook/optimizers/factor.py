"""Cholesky's factor without a wait: a GPU works on while the host hands it the next steps."""

import torch
from torch import Tensor


def cholesky(A: Tensor) -> Tensor:
    """Lower factor of positive definite matrices `[..., n, n]`; NaN where one is not.

    To raise an error would be to wait for the device at every step; a run that meets NaN ends as one that diverged.
    """
    L, failed = torch.linalg.cholesky_ex(A)
    return L.masked_fill_((failed > 0)[..., None, None], torch.nan)
