"""From API objects to the desired ruleset."""
