"""Benchmarks, each one file, run by `seedtune bench NAME`."""
