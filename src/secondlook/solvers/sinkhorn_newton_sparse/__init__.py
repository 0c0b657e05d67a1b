"""Accelerating Sinkhorn Algorithm with Sparse Newton Iterations (2024)."""

from .method import (
    OTResult,
    dual_hessian,
    dual_value,
    largest,
    newton_direction,
    sinkhorn,
    sns,
    transport_plan,
)

__all__ = [
    "OTResult",
    "dual_hessian",
    "dual_value",
    "largest",
    "newton_direction",
    "sinkhorn",
    "sns",
    "transport_plan",
]
