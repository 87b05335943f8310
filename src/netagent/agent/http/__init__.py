"""What can be asked of the agent: health, metrics, debug, the status page."""
