"""Parts of an experiment: runs, claims and their evidence, charts, and results."""
