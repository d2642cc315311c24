"""The training loop, one step, and all that surrounds the step."""
