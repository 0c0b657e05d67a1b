"""Second Look: a second look at 169 papers on second-order machine learning."""

__version__ = "0.1.0"
