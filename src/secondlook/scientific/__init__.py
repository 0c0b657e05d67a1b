"""Scientific computing: special functions, simulation and the physical sciences."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "log_bessel_gpu": ["VonMisesFisher", "bessel_ratio", "log_iv", "log_kv"],
    },
)
