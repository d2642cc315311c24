"""What `plbench.engine` trains with: a run under way, one step of it, and all that surrounds the step."""
