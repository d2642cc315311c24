"""Many heads trained in one pass over the same features."""
