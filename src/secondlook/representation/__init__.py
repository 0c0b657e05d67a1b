"""Representation, scaling laws and data: what is learned, and how it grows."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "step_law": ["StepLaw", "bowl", "fit_step_law", "loss_gap"],
    },
)
