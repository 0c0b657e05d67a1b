"""Influence functions with EK-FAC (Grosse et al., 2023)."""

from secondlook.influence.ekfac_influence.exact import cg_solver, dense_solver
from secondlook.influence.ekfac_influence.lissa import lissa_solver
from secondlook.influence.ekfac_influence.losses import CrossEntropy, HalfSquaredError, OutputLoss
from secondlook.influence.ekfac_influence.method import EKFACInfluence
from secondlook.influence.ekfac_influence.pbrf import pbrf, response

__all__ = [
    "CrossEntropy",
    "EKFACInfluence",
    "HalfSquaredError",
    "OutputLoss",
    "cg_solver",
    "dense_solver",
    "lissa_solver",
    "pbrf",
    "response",
]
