"""AuON: momentum divided by the root mean square of its hyperbolic cosine (2025), and Muon beside it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"method": ["AuON", "Muon", "cosh_rms", "newton_schulz5"], "together": ["Together"]},
)
