"""ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning (Yao et al. 2020)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": ["AdaHessian", "hutchinson_diag", "sign_vectors", "spatial_mean"],
    },
)
