"""From scores at known cells to the figures of a record, and how sure they are."""
