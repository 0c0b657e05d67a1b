"""Training neural networks in single vs double precision (KDIR 2022)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"method": ["Network", "Task", "make_zero_mse_task", "rmsprop", "width_for"]},
)
