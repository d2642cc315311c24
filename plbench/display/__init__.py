"""What a person is shown: progress, tables, contact sheets, what is installed and what is known."""
