"""Adapter to the Linux kernel: nftables, links, addresses, routes, neighbours, FDB."""
