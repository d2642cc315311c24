"""One run, from what was asked for to its record; and many, as far as they share work."""
