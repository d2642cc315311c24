"""Terminal output: tables, dry runs, installed plugins."""
