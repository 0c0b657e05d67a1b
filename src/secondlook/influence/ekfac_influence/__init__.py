"""Influence functions with EK-FAC (Grosse et al., 2023)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "exact": ["cg_solver", "dense_solver"],
        "lissa": ["lissa_solver"],
        "losses": ["CrossEntropy", "HalfSquaredError", "OutputLoss"],
        "method": ["EKFACInfluence"],
        "proximal": ["pbrf", "response"],
    },
)
