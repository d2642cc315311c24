"""From what a person asks for to the complete plan of a run."""
