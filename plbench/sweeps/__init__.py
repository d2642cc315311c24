"""Many runs from one file, here or on a Ray cluster."""
