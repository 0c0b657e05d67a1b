"""FD-Net with auxiliary time steps, trained by a Hessian-free trust region (2019)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "heat": ["heat_solution"],
        "method": ["Trace", "steihaug", "trust_region_cg"],
        "network": ["FDNet"],
    },
)
