"""What a run will take before it is made: time, memory, what is there already."""
