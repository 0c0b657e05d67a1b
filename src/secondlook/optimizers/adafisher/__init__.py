"""AdaFisher: Adaptive Second Order Optimization via Fisher Information (Gomes et al. 2024)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"method": ["AdaFisher", "kfac_factor_diagonals"]}
)
