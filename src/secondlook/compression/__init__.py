"""Smaller networks with the same answers: quantization, pruning and low-rank forms guided by curvature."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "gptq": ["GPTQCalibrator", "gptq_quantize", "obq_quantize", "quantize_sequential", "rtn_quantize"],
    },
)
