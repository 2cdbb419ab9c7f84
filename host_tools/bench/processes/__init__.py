"""Processes whose own memory or start is measured: `python -m` runs one, benchmarks start it."""
