"""Four scaling regimes of random-feature models and networks (arXiv 2102.06701)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": [
            "Exponent",
            "TeacherStudent",
            "fit_exponent",
            "kernel_spectrum_exponent",
            "rf_loss",
            "rf_loss_infinite_data",
            "rf_loss_infinite_width",
        ],
    },
)
