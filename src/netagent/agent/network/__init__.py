"""This node in the pod network: its subnets, its links and routes, what the operator is told of it."""
