"""Sophia: clipped steps scaled by a rarely refreshed diagonal of the curvature (Liu et al. 2023)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"bartlett": ["bartlett_diag", "sample_labels"], "method": ["Sophia"]},
)
