"""The device side: open a bundle, tune its sensitive values with forward passes, keep a journal."""
