"""Optimizers that use second-order information, and the common protocol that compares them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adafisher": ["AdaFisher", "kfac_factor_diagonals"],
        "adahessian": ["AdaHessian", "hutchinson_diag"],
        "adamp": ["SGDP", "AdamP"],
        "auon": ["AuON", "Muon"],
        "curvature_aware_coordinate_networks": ["CoordNet", "fit_signal"],
        "deepzero": ["DeepZero", "ZOTrainer", "cge", "rge", "zo_grasp"],
        "ensloss": ["EnsLoss", "random_calibrated_derivatives"],
        "fd_net": ["FDNet", "heat_solution", "trust_region_cg"],
        "fismo": ["FISMO"],
        "fosi": ["FOSI"],
        "innaprop": ["INNAprop"],
        "kfac_deep_hedging": ["KFAC", "HedgingLSTM", "hedge_pnl", "simulate_heston"],
        "least_squares": ["levenberg_marquardt"],
        "m_fac": ["MFAC", "DynamicIHVP", "StaticIHVP", "obs_prune"],
        "mkor": ["MKOR", "rank1_inverse_update"],
        "nonlinear_cg": ["conjugate_gradient"],
        "oasis": ["OASIS", "oasis_minimize"],
        "optimal_input_gain": ["OIGTrainer", "input_gains", "owo"],
        "scalable_shampoo": ["Shampoo"],
        "single_vs_double_precision": ["make_zero_mse_task", "rmsprop"],
        "sophia": ["Sophia"],
        "spacetime_nn": ["SpacetimeAR", "midpoint_residual", "tdvp", "tfim"],
        "subset_pretraining": ["overdetermination_ratio", "subset_pretrain"],
        "thermodynamic_ngd": ["TNGD", "LowRankOU", "ThermodynamicNGD", "ou_solve"],
        "vit_sam": ["SAM"],
    },
)
