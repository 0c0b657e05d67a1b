"""GPTQ, its greedy predecessor OBQ, and round-to-nearest, on the same grids."""

from secondlook.compression.gptq.grid import Grid, QuantizedWeight, fit_grid, output_error, rtn_quantize
from secondlook.compression.gptq.method import GPTQCalibrator, gptq_quantize, inverse_cholesky
from secondlook.compression.gptq.obq import obq_quantize
from secondlook.compression.gptq.sequential import (
    QuantizedModel,
    block_inputs,
    collect_hessians,
    quantize_sequential,
)

__all__ = [
    "GPTQCalibrator",
    "Grid",
    "QuantizedModel",
    "QuantizedWeight",
    "block_inputs",
    "collect_hessians",
    "fit_grid",
    "gptq_quantize",
    "inverse_cholesky",
    "obq_quantize",
    "output_error",
    "quantize_sequential",
    "rtn_quantize",
]
