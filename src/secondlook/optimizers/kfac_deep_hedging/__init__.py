"""K-FAC on a recurrent hedging policy in Heston's market."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "market": ["Heston", "banded", "black_scholes_delta", "call_price", "simulate_heston"],
        "method": ["KFAC"],
        "policy": ["HedgingLSTM", "hedge_pnl"],
    },
)
