"""Shampoo at scale: Kronecker preconditioners in blocks, rarely refreshed roots, grafted lengths (Anil et al. 2020)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"blocks": ["blocks", "merged_shape"], "method": ["Shampoo"], "roots": ["inverse_pth_root"]},
)
