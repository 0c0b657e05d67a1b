"""Criteria read off Hessian spectra, and loss landscapes along Hessian axes (arXiv 2412.10146)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "landscape": ["adam_axes", "landscape", "normalised", "random_axes"],
        "method": ["HessianSpectrum", "hessian_criteria", "smoothed_density", "windowed_lanczos"],
    },
)
