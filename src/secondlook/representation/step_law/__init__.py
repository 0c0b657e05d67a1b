"""Predictable Scale, Part I: power laws for the best learning rate and batch size."""

from secondlook.representation.step_law.method import Bowl, StepLaw, bowl, fit_step_law, loss_gap, near_best

__all__ = ["Bowl", "StepLaw", "bowl", "fit_step_law", "loss_gap", "near_best"]
