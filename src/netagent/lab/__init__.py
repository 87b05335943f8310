"""The cluster on one machine: uses the agent as a user would."""
