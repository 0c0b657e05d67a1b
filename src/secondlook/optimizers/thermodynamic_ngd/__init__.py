"""Thermodynamic natural gradient descent: an analog device solves for the step (Donatella et al. 2024)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "factor": ["curvature_factor"],
        "method": ["TNGD", "DenseOU", "LowRankOU", "euler_maruyama", "ThermodynamicNGD", "ou_solve"],
    },
)
