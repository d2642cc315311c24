"""Telling experiment trackers what a training does. Off by default; a tracker that fails never costs a run."""
