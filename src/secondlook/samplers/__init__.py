"""Samplers: solving the diffusion ODE in few model evaluations."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dpm_solver_v3": ["DDIM", "EMS", "DPMSolverPP", "DPMSolverV3", "RungeKutta", "UniPC", "compute_ems"],
    },
)
