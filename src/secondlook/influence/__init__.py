"""What a training example does to a trained model: influence, attribution and data selection."""

from secondlook.influence.ekfac_influence import EKFACInfluence

__all__ = ["EKFACInfluence"]
