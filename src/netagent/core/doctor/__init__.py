"""Facts of a node judged."""
