"""Annotation files as they are published, read into sparse labels."""
