"""Solvers: optimal transport and linear systems."""

from .sinkhorn_newton_sparse import OTResult, sinkhorn, sns

__all__ = ["OTResult", "sinkhorn", "sns"]
