"""netagent: pod subnets, pod network and NetworkPolicy for one Kubernetes node."""

__version__ = "0.1.0"
