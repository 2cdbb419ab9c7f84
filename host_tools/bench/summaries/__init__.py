"""Committed tables, summed up, and shown to people."""
