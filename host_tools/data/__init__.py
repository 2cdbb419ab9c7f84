"""Models and data sets that are fetched, and the named tasks made of them."""
