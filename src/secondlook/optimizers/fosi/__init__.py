"""FOSI: Hybrid First and Second Order Optimization (Sivan, Gabel and Schuster 2023)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"method": ["FOSI", "lanczos_extreme"]})
