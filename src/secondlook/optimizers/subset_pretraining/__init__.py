"""Efficient Neural Network Training via Subset Pretraining (2024)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"method": ["History", "balanced_subset", "overdetermination_ratio", "subset_pretrain"]},
)
