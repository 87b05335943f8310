"""Subnets, peers, links and routes that there should be."""
