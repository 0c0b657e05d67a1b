"""Spectra: what the eigenvalues of Hessians and other large matrices say."""

from .overparametrized_hessian import (
    Spectrum,
    barrier,
    bulk_and_outliers,
    full_hessian,
    gauss_newton,
    gn_split,
    segment_loss,
)

__all__ = ["Spectrum", "barrier", "bulk_and_outliers", "full_hessian", "gauss_newton", "gn_split", "segment_loss"]
