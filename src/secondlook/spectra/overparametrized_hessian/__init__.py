"""Exact Hessian spectra of over-parametrized networks (arXiv 1706.04454)."""

from .method import Spectrum, barrier, bulk_and_outliers, descend, full_hessian, gauss_newton, gn_split, segment_loss

__all__ = [
    "Spectrum",
    "barrier",
    "bulk_and_outliers",
    "descend",
    "full_hessian",
    "gauss_newton",
    "gn_split",
    "segment_loss",
]
