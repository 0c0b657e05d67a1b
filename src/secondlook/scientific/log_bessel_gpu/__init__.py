"""Accurate Computation of the Logarithm of Modified Bessel Functions on GPUs."""

from secondlook.scientific.log_bessel_gpu.method import bessel_ratio, log_iv, log_kv
from secondlook.scientific.log_bessel_gpu.vmf import Fit, VonMisesFisher

__all__ = ["Fit", "VonMisesFisher", "bessel_ratio", "log_iv", "log_kv"]
