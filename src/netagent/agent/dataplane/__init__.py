"""The kernel's table kept true: the loop that commits, who waits for it, and what others do to it."""
