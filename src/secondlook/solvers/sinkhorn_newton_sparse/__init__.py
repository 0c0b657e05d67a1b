"""Accelerating Sinkhorn Algorithm with Sparse Newton Iterations (2024)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": [
            "OTResult",
            "dual_hessian",
            "dual_value",
            "largest",
            "newton_direction",
            "sinkhorn",
            "sns",
            "transport_plan",
        ],
    },
)
