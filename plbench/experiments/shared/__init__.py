"""What a study is made of: its runs, its claims and what they rest on, its charts, and what it leaves."""
