"""Hyper-parameter tuning with Optuna studies shared by several workers."""
