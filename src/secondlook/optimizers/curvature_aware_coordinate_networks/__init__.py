"""Curvature-Aware Training for Coordinate Networks (Chng et al. 2023)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "fitting": ["Trace", "fit_signal", "psnr"],
        "lbfgs": ["lbfgs", "strong_wolfe", "two_loop"],
        "method": ["CoordNet"],
    },
)
