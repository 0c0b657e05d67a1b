"""Optimal input gains: a diagonal or full change of the inputs, solved for at every step (Tyagi et al. 2023)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"method": ["History", "Network", "OIGTrainer", "gradient", "input_gains", "owo", "whitening"]},
)
