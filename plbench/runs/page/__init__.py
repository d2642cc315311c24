"""The page of a run: one HTML file with curves, classes, mistakes and cost, made from the run's files."""
