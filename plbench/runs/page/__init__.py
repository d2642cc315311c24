"""The page of a run: one HTML file with its curves, its classes, its mistakes and what it cost, made from its files."""
