"""The function space that a data augmentation defines (arXiv 2306.00788)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": [
            "AugmentationOperator",
            "hypercube",
            "kernel_ridge",
            "mask_eigenvalues",
            "mask_table",
            "masks",
            "random_mask_kernel",
            "spectral_contrastive_loss",
            "top_d_probe",
        ],
    },
)
