"""Services of one agent: each has its own time and tasks."""
