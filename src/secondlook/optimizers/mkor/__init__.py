"""MKOR: Momentum-Enabled Kronecker-Factor-Based Optimizer Using Rank-1 Updates (Mozaffari et al. 2023)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"method": ["MKOR", "rank1_inverse_update"]})
