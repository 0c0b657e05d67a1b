"""DeepZero: Scaling up Zeroth-Order Optimization for Deep Model Training (Chen et al. 2023)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": ["cge", "layer_masks", "rge", "zo_grasp"],
        "trainer": ["DeepZero", "ZOTrainer", "cge_by_layer"],
    },
)
