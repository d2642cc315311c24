"""What a person reads in the terminal: tables, what a run would do, what is installed."""
