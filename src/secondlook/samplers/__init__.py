"""Samplers: solving the diffusion ODE in few model evaluations."""

from secondlook.samplers.dpm_solver_v3 import (
    DDIM,
    EMS,
    DPMSolverPP,
    DPMSolverV3,
    RungeKutta,
    UniPC,
    compute_ems,
)

__all__ = ["DDIM", "EMS", "DPMSolverPP", "DPMSolverV3", "RungeKutta", "UniPC", "compute_ems"]
