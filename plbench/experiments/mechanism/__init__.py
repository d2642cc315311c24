"""Estimate the annotation mechanism behind partial labels, and the treatment of unknown labels that suits it."""
