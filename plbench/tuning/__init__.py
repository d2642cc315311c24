"""Optuna's studies, shared by several workers; the experiments of the paper are in `plbench.experiments`."""
