"""The benchmark harness: one file a benchmark, one entry, `python -m benchmarks`."""
