"""Adapter to the Kubernetes API server."""
