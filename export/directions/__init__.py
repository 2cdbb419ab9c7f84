"""Directions in the sensitive values, learned from generic text in a task's prompt."""
