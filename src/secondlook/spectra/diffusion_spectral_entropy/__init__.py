"""Entropy and mutual information from the spectrum of a diffusion operator (arXiv 2312.04823)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": [
            "binned_shannon_entropy",
            "diffusion_spectral_entropy",
            "diffusion_spectral_mutual_information",
            "diffusion_spectrum",
            "discretise",
            "median_distance",
            "spectral_entropy",
        ],
    },
)
