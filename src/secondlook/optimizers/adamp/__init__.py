"""AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights (Heo et al. 2020)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": ["SGDP", "AdamP", "effective_step", "predicted_norm_sq", "project"],
    },
)
