"""Solvers: optimal transport and linear systems."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "sinkhorn_newton_sparse": ["OTResult", "sinkhorn", "sns"],
    },
)
