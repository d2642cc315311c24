"""Comparison of methods: results of their runs, uncertainty, and verdict."""
