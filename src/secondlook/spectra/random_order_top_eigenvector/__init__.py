"""Approximating the Top Eigenvector in Random Order Streams (arXiv 2412.11963)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"method": ["StreamingTopEigenvector", "oja_top_eigenvector"]},
)
