"""Batch Hessians and maximal learning rates by random matrix theory (arXiv 2006.09092)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "lanczos_lr": ["LanczosLR"],
        "method": [
            "batch_hessian_extremes",
            "batch_hessians",
            "effective_batch",
            "max_stable_lr",
            "noise_level",
            "spike_overlap",
            "spiked_covariance_top",
            "spiked_top_eigenvalue",
        ],
    },
)
