"""Spectra: what the eigenvalues of Hessians and other large matrices say."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "diffusion_spectral_entropy": [
            "binned_shannon_entropy",
            "diffusion_spectral_entropy",
            "diffusion_spectral_mutual_information",
            "diffusion_spectrum",
        ],
        "farms": [
            "TempBalance",
            "alpha_pruning_ratios",
            "farms_alpha",
            "farms_eigs",
            "null_alpha",
            "pl_alpha_hill",
            "prune_by_magnitude",
            "raw_alpha",
        ],
        "lla_hessian_criteria": ["HessianSpectrum", "hessian_criteria", "landscape"],
        "overparametrized_hessian": [
            "Spectrum",
            "barrier",
            "bulk_and_outliers",
            "full_hessian",
            "gauss_newton",
            "gn_split",
            "segment_loss",
        ],
        "random_order_top_eigenvector": ["StreamingTopEigenvector", "oja_top_eigenvector"],
        "s4d": ["S4D", "S4DKernel", "s4d_init"],
        "sgd_dynamical_stability": [
            "critical_learning_rate",
            "interpolation_trace",
            "second_moment_radius",
            "sgd_stability_run",
        ],
        "state_space": ["hippo_legs", "transfer_function"],
    },
)
