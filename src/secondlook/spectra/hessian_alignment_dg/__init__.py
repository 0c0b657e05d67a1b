"""Aligning the head's gradients and Hessians across training domains (ICCV 2023, arXiv 2308.11778)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": ["HessianAlignment", "head_gradient", "head_hessian", "head_product", "hgp", "hutchinson_diag"],
        "domains": ["colored_environment"],
        "transfer": ["transfer_bound", "transfer_measure"],
    },
)
