"""EnsLoss: a fresh calibrated loss at every batch, by its derivatives alone (Dai 2024)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"method": ["EnsLoss", "by_rank", "inverse_box_cox", "random_calibrated_derivatives"]}
)
