"""M-FAC: Efficient Matrix-Free Approximations of Second-Order Information (Frantar et al., 2021)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": ["DynamicIHVP", "StaticIHVP"],
        "optimizer": ["MFAC"],
        "pruning": ["batch_gradients", "obs_prune", "obs_step", "prunable"],
    },
)
