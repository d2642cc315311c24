"""Estimates of a run before it starts: time, memory, and existing results."""
