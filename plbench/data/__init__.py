"""Datasets: labels, images, downloads, shards, and simulation of partial labels."""
