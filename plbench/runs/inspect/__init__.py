"""What `plbench data` does to a dataset: download it, prepare it, verify it, count it, show it."""
