"""`python -m plbench` is `plbench`."""

from plbench.cli import main

main()
