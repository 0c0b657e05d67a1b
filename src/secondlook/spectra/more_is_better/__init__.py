"""The risk of random-feature and kernel regression in closed form (arXiv 2311.14646)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": [
            "fitting_ratio_curve",
            "interpolation_noise",
            "kernel_path",
            "krr_risk",
            "optimal_fitting_ratio",
            "optimal_ridge",
            "rf_risk",
            "ridge_at_fitting_ratio",
            "ridge_path",
            "solve_rf_framework",
        ],
    },
)
