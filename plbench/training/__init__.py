"""What `plbench.engine` trains with: inputs, one step, and all that surrounds the step."""
