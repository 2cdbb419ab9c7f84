"""Ways to tune that benchmarks compare: one file each, and the tables that name them."""
