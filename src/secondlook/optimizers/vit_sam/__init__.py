"""When Vision Transformers Outperform ResNets without Pre-training or Strong Data Augmentations (Chen et al. 2021)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "geometry": ["active_fraction", "hessian_top_eig"],
        "method": ["SAM", "frozen_statistics"],
        "networks": ["mixer", "vit"],
    },
)
