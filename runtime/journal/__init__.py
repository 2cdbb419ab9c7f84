"""The journal of a run: its format, the file, replay, and what can be done with a finished run."""
