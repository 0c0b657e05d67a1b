"""Scientific computing: special functions, simulation and the physical sciences."""

from secondlook.scientific.log_bessel_gpu import VonMisesFisher, bessel_ratio, log_iv, log_kv

__all__ = ["VonMisesFisher", "bessel_ratio", "log_iv", "log_kv"]
