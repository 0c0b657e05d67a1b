"""The machinery, and no science: cards, claims, statistics, tidy tables, provenance, runner, report.

Importing this package loads neither torch nor pandas: the command line and the Snakefile start from here.
"""
