"""What `plbench data` does to a dataset: fetch it, prepare it, verify it, count it, show it."""
