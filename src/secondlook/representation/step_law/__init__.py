"""Predictable Scale, Part I: power laws for the best learning rate and batch size."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": ["Bowl", "StepLaw", "bowl", "fit_step_law", "loss_gap", "near_best"],
    },
)
