"""Hostile bytes for every decoder: the same targets for hypothesis (`make test`) and for a coverage-guided fuzzer."""
