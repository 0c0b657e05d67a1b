"""Accurate Computation of the Logarithm of Modified Bessel Functions on GPUs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": ["bessel_ratio", "log_iv", "log_kv"],
        "vmf": ["Fit", "VonMisesFisher"],
    },
)
