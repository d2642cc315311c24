"""Implementation of `plbench data`: download, prepare, verify, count and show a dataset."""
