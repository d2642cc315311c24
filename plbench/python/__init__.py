"""What Python code calls, and the command line is a layer over: runs, comparisons, studies, and their results."""
