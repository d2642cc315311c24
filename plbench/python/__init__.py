"""The Python API, on which the command line is built: runs, comparisons, studies, and their results."""
