"""What a training example does to a trained model: influence, attribution and data selection."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ekfac_influence": ["EKFACInfluence"],
    },
)
