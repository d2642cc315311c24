"""Decoding, augmentation and loaders."""
