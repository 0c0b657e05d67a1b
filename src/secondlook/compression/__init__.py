"""Smaller networks with the same answers: quantization, pruning and low-rank forms guided by curvature."""

from secondlook.compression.gptq import (
    GPTQCalibrator,
    gptq_quantize,
    obq_quantize,
    quantize_sequential,
    rtn_quantize,
)

__all__ = ["GPTQCalibrator", "gptq_quantize", "obq_quantize", "quantize_sequential", "rtn_quantize"]
