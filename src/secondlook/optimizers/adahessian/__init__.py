"""ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning (Yao et al. 2020)."""

from secondlook.optimizers.adahessian.method import AdaHessian, hutchinson_diag, sign_vectors, spatial_mean

__all__ = ["AdaHessian", "hutchinson_diag", "sign_vectors", "spatial_mean"]
