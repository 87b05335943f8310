"""Adapter to state files."""
