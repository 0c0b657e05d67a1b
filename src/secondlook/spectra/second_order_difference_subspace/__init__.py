"""Second-order difference subspace (arXiv 2409.08563)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": [
            "Magnitudes",
            "canonical_angles",
            "difference_subspace",
            "magnitude",
            "mean_subspace",
            "second_order_difference",
            "second_order_magnitudes",
            "ssa_subspaces",
            "subspace",
            "subspace_magnitudes",
        ],
    },
)
