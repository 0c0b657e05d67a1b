"""Which minima stochastic gradient descent can stay at (arXiv 2305.17490)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "method": [
            "Settled",
            "critical_learning_rate",
            "diagonal_linear",
            "interpolation_trace",
            "output_gradients",
            "second_moment_radius",
            "settle",
            "sgd_stability_run",
            "top_eigenvalue",
            "two_layer_relu",
        ],
    },
)
