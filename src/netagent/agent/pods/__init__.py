"""Pods of this node: CNI, and their links for as long as they live."""
