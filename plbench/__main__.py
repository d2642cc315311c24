"""`python -m plbench` is `plbench`."""

from plbench.cli import main

if __name__ == "__main__":  # not in the processes that this one spawns, which import it
    main()
