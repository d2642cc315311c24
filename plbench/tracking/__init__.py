"""Optional experiment trackers, whose errors never stop a run."""
