"""From what a person asks for to complete plans of runs, and what those will cost."""
