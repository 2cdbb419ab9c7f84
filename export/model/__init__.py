"""Loading a causal language model, and its shape without loading it."""
