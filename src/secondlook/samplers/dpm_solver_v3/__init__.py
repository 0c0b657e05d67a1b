"""DPM-Solver-v3: fast diffusion ODE sampling with empirical model statistics, and the solvers it is compared
with."""

from secondlook.samplers.dpm_solver_v3.baselines import DDIM, DPMSolverPP, RungeKutta, UniPC
from secondlook.samplers.dpm_solver_v3.method import EMS, DPMSolverV3, compute_ems
from secondlook.samplers.dpm_solver_v3.schedule import EDMSchedule, Schedule, VPSchedule

__all__ = [
    "DDIM",
    "EMS",
    "DPMSolverPP",
    "DPMSolverV3",
    "EDMSchedule",
    "RungeKutta",
    "Schedule",
    "UniPC",
    "VPSchedule",
    "compute_ems",
]
