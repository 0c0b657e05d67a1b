"""FISMO: momentum made orthogonal in the metric of a Kronecker-factored Fisher matrix (2026)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"method": ["FISMO", "kron_fisher_update", "polar_factor"]},
)
