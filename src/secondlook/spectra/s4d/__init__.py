"""On the Parameterization and Initialization of Diagonal State Space Models (arXiv 2206.11893)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"method": ["S4D", "S4DKernel", "diagonal_legs", "impulse_response", "s4d_init", "step_response"]},
)
