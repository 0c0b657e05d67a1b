"""Exact Hessian spectra of over-parametrized networks (arXiv 1706.04454)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": [
            "Spectrum",
            "barrier",
            "bulk_and_outliers",
            "descend",
            "full_hessian",
            "gauss_newton",
            "gn_split",
            "segment_loss",
        ],
    },
)
