"""Resolve what the user asked for to the complete plan of a run."""
