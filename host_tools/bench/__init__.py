"""Benchmarks: `seedtune bench NAME` runs the file NAME.py. Folders hold what benchmarks use, and
know none of them; `results` holds the committed figures."""
