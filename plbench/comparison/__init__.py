"""Methods side by side: which runs, what came of them, and what that says."""
