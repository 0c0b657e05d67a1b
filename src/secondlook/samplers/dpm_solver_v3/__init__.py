"""DPM-Solver-v3: fast diffusion ODE sampling with empirical model statistics, and the solvers it is compared
with."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "baselines": ["DDIM", "DPMSolverPP", "RungeKutta", "UniPC"],
        "method": ["EMS", "DPMSolverV3", "compute_ems"],
        "schedule": ["EDMSchedule", "Schedule", "VPSchedule"],
    },
)
