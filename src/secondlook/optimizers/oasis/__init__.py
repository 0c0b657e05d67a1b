"""OASIS: Doubly Adaptive Scaled Algorithm for Machine Learning Using Second-Order Information (Jahani et al. 2021)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": ["OASIS", "step_length", "truncate"],
        "minimize": ["Result", "oasis_minimize"],
    },
)
