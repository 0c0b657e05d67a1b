"""Robustifying State-space Models for Long Sequences via Approximate Diagonalization (arXiv 2310.01698)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": [
            "Diagonalization",
            "S4DLayer",
            "low_rank_gain",
            "paired_modes",
            "perturb_then_diagonalize",
            "ptd_bound",
        ]
    },
)
