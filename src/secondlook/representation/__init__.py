"""Representation, scaling laws and data: what is learned, and how it grows."""

from secondlook.representation.step_law import StepLaw, bowl, fit_step_law, loss_gap

__all__ = ["StepLaw", "bowl", "fit_step_law", "loss_gap"]
