"""Spacetime Neural Network for High Dimensional Quantum Dynamics (Wang et al. 2021)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": ["Grid", "SpacetimeAR", "midpoint", "midpoint_residual", "tfim"],
        "variational": ["cayley", "exact", "infidelity", "magnetisation_x", "tdvp"],
    },
)
