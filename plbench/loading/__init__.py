"""Load image files as batches on the device."""
