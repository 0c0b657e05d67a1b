"""Heavy-tail exponents of layers without aspect-ratio bias (arXiv 2506.06280)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "layerwise": ["TempBalance", "alpha_pruning_ratios", "prune_by_magnitude"],
        "method": ["farms_alpha", "farms_eigs", "null_alpha", "pl_alpha_hill", "raw_alpha"],
    },
)
