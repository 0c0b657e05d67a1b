"""INNAprop: inertial Newton dynamics with RMSprop's scaling (Bolte et al. 2024)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "flow": ["inna_flow"],
        "method": ["INNAprop", "euler_step"],
    },
)
