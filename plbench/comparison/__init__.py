"""Methods side by side: what came of their runs, how sure that is, and what it says."""
