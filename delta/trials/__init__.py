"""Trials: one way to try a config under a seed, resumed and side by side, behind search,
comparison, the automatic choice and GLUE."""
