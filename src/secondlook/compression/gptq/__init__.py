"""GPTQ, its greedy predecessor OBQ, and round-to-nearest, on the same grids."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "grid": ["Grid", "QuantizedWeight", "fit_grid", "output_error", "rtn_quantize"],
        "method": ["GPTQCalibrator", "gptq_quantize", "inverse_cholesky"],
        "obq": ["obq_quantize"],
        "sequential": ["QuantizedModel", "block_inputs", "collect_hessians", "quantize_sequential"],
    },
)
