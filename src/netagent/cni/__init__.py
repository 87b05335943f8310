"""The CNI plugin that the container runtime executes, and its configuration list."""
