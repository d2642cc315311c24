"""plbench: the benchmark suite for learning from images whose labels are only partly known."""

__version__ = "0.1.0"
