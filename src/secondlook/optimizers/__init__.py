"""Optimizers that use second-order information, and the common protocol that compares them."""

from secondlook.optimizers.adahessian import AdaHessian, hutchinson_diag

__all__ = ["AdaHessian", "hutchinson_diag"]
